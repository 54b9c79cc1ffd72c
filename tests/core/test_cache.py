from evocompress.core.cache import Cache


def sizes(cache, *keys):
    """Get values whose size is their key's number."""
    return [cache.get(key, lambda key=key: [key], lambda value: int(value[0])) for key in keys]


def test_a_value_is_made_once():
    cache = Cache(100)
    first, again = sizes(cache, "30", "30")
    assert first is again
    assert cache.bytes == 30


def test_what_was_not_used_for_longest_goes_first():
    cache = Cache(100)
    sizes(cache, "30", "40", "20", "30", "50")
    assert [key in cache for key in ("30", "40", "20", "50")] == [True, False, True, True]
    assert cache.bytes == 100


def test_what_does_not_fit_is_not_kept_and_drives_nothing_out():
    cache = Cache(100)
    sizes(cache, "30", "101")
    assert "101" not in cache and "30" in cache
    assert cache.bytes == 30


def test_a_value_may_need_another_one():
    cache = Cache(100)
    outer = cache.get("outer", lambda: cache.get("80", lambda: 8, lambda _: 80), lambda _: 40)
    assert outer == 8
    assert "80" not in cache and cache.bytes == 40
