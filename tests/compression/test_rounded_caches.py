"""Rounded caches against a plain reference, which transformers is given as its cache."""

import copy

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard
from transformers import DynamicCache

from evocompress.compression.live_model import LiveModel
from evocompress.compression.rounded_caches import round_cache, rounded_cache
from evocompress.core.errors import LibraryError, ModelError
from evocompress.core.storage import CACHE, CACHES
from evocompress.core.types import DROP, Candidate, Level
from evocompress.evaluation.estimates import ESTIMATES
from evocompress.evaluation.estimates.base import Subject
from evocompress.models.families.caches import check_key_value_caches
from evocompress.testing.derived import typical_config, typical_loaded
from evocompress.testing.tiny import DECODERS, tiny_loaded

SIGNED = {"q8_0": 127, "q5_0": -16, "q4_0": -8}
"""The code of the value of largest size in a block."""


def half(value):
    return float(np.float16(value))


def plain_block(block, name):
    """Up to 32 numbers as a type gives them back, one after the other."""
    bits = CACHES[name].bits
    if name in SIGNED:
        extreme = max(block, key=abs)
        scale = half((abs(extreme) if name == "q8_0" else extreme) / SIGNED[name])
        low, high = (-127, 127) if name == "q8_0" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        return [scale * min(max(round(x / scale), low), high) for x in block]
    least, steps = half(min(block)), 2**bits - 1
    # A scale is rounded to two bytes, before which it is a number of four.
    scale = half((np.float32(max(block)) - np.float32(min(block))) / np.float32(steps))
    return [least + scale * min(max(round((x - least) / scale), 0), steps) for x in block]


def plain(tensor, name, *, along_tokens):
    """A tensor (B, heads, S, width), rounded by loops."""
    array = tensor.double().numpy()
    rows = array.swapaxes(2, 3) if along_tokens else array
    found = np.empty_like(rows)
    for place in np.ndindex(rows.shape[:3]):
        for begin in range(0, rows.shape[3], 32):
            block = rows[place][begin : begin + 32]
            found[place][begin : begin + 32] = plain_block(block.tolist(), name)
    return torch.from_numpy((found.swapaxes(2, 3) if along_tokens else found).copy())


class Reference(DynamicCache):
    """A cache of transformers that gives back a mix of what it is given and that, rounded."""

    def __init__(self, types, share=1.0, config=None):
        super().__init__(config=config)
        self.types, self.share = types, share

    def update(self, keys, values, layer, *rest, **named):
        keys, values = super().update(keys, values, layer, *rest, **named)
        if name := self.types.get(layer):
            tokens = CACHES[name].lane == CACHE
            rounded = (
                plain(keys, name, along_tokens=tokens),
                plain(values, name, along_tokens=False),
            )
            pairs = zip((keys, values), rounded, strict=True)
            keys, values = (own + self.share * (new.to(own) - own) for own, new in pairs)
        return keys, values


def ids_of(length=40):
    return torch.randint(1, 256, (2, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", CACHES)
def test_rounding_equals_the_plain_one(name):
    generator = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(2, 2, 45, 96, generator=generator) for _ in range(2))
    found = rounded_cache(keys, values, name)
    expected = plain(keys, name, along_tokens=CACHES[name].lane == CACHE)
    torch.testing.assert_close(found[0].double(), expected, rtol=1e-5, atol=1e-5)
    expected = plain(values, name, along_tokens=False)
    torch.testing.assert_close(found[1].double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("width", "sizes"), [(64, (64, 64)), (128, (128, 64)), (192, (64, 64))])
def test_llama_cpp_s_heads_are_turned_before_and_behind(width, sizes):
    generator = torch.Generator().manual_seed(0)
    pair = [torch.randn(1, 2, 5, width, generator=generator) for _ in range(2)]
    for tensor, found, size in zip(pair, rounded_cache(*pair, "q4_0"), sizes, strict=True):
        turn = torch.from_numpy(hadamard(size) / size**0.5)
        parts = tensor.double().view(1, 2, 5, -1, size) @ turn
        rounded = plain(parts.view(tensor.shape).float(), "q4_0", along_tokens=False)
        expected = (rounded.view(1, 2, 5, -1, size) @ turn).view(tensor.shape)
        # A number half-way between two values may go to either.
        close = torch.isclose(found.double(), expected, rtol=1e-4, atol=1e-4)
        assert close.float().mean() > 0.9
        assert float((found - expected).square().mean()) < 1e-3


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3", "gemma3_text", "phi3", "mixtral"])
@pytest.mark.parametrize("name", ["kv3", "q4_0"])
def test_the_live_model_computes_with_what_a_cache_gives_back(kind, name):
    loaded, ids = tiny_loaded(kind, hidden=128), ids_of()
    dense = loaded.model(ids, use_cache=False).logits
    with LiveModel(loaded) as live:
        caches = [unit.name for unit in live.tree if unit.kind == "cache"]
        assert len(caches) == 3
        expected = loaded.model(ids, past_key_values=Reference({0: name, 2: name})).logits
        live.apply(Candidate(tuple((caches[i], Level(cache=name)) for i in (0, 2))))
        found = loaded.model(ids, use_cache=False).logits
        assert sum("rounding" in name for name, _ in loaded.model.named_modules()) == 2
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert float((found - dense).abs().max()) > 0.05
    assert not any("rounding" in name for name, _ in loaded.model.named_modules())
    assert torch.equal(loaded.model(ids, use_cache=False).logits, dense)


@pytest.mark.parametrize(
    "kind", ["gpt_neox", "gpt_neo", "gptj", "falcon", "bloom", "mpt", "qwen3_next"]
)
def test_derived_families_compute_with_it_too(kind):
    loaded, ids = typical_loaded(typical_config(kind)), ids_of() % 60 + 1
    dense = loaded.model(ids, use_cache=False).logits
    with LiveModel(loaded) as live:
        caches = [unit for unit in live.tree if unit.kind == "cache"]
        cache = Reference({unit.block: "kv3" for unit in caches}, config=loaded.model.config)
        expected = loaded.model(ids, past_key_values=cache).logits
        live.apply(Candidate(tuple((unit.name, Level(cache="kv3")) for unit in caches)))
        found = loaded.model(ids, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert float((found - dense).abs().max()) > 0.05


def test_tokens_one_after_the_other_read_the_same_cache():
    loaded, ids = tiny_loaded("llama", hidden=128), ids_of(12)
    with LiveModel(loaded) as live:
        unit = next(unit.name for unit in live.tree if unit.kind == "cache")
        live.apply(Candidate(((unit, Level(cache="q4_0")),)))
        whole, cache, found = loaded.model(ids).logits, DynamicCache(), []
        for place in range(ids.shape[1]):
            step = loaded.model(ids[:, place : place + 1], past_key_values=cache)
            found.append(step.logits)
    torch.testing.assert_close(torch.cat(found, 1), whole, rtol=1e-4, atol=1e-4)


def test_products_are_derivatives_along_the_change():
    loaded, ids = tiny_loaded("llama", hidden=128), ids_of()[:1]
    names = [unit.name for unit in loaded.family.units(loaded.model) if unit.kind == "attention"]
    options = (Level(), Level(cache="kv8"), Level(cache="kv2"))
    levels = {f"{name}.cache": options for name in names}
    candidate = Candidate(((names[1], DROP),))
    with LiveModel(loaded) as live:
        rows = ESTIMATES["slope"](Subject(live, [ids], candidate, levels))
        reference = loaded.model(ids).logits[0, :-1].double().log_softmax(-1)

        def divergence(layer, name, share):
            cache = Reference({layer: name}, share)
            logits = loaded.model(ids, past_key_values=cache).logits
            logs = logits[0, :-1].double().log_softmax(-1)
            return float((reference.exp() * (reference - logs)).sum(-1).mean())

        assert not any(rows[f"{names[1]}.cache"])
        live.apply(candidate)
        for layer in (0, 2):
            found = rows[f"{names[layer]}.cache"]
            assert found[0] == 0
            for value, level in zip(found[1:], options[1:], strict=True):
                step = 2e-2 if level.cache == "kv2" else 0.5
                ends = (divergence(layer, level.cache, sign * step) for sign in (1, -1))
                expected = (next(ends) - next(ends)) / (2 * step)
                assert value == pytest.approx(expected, rel=2e-2, abs=1e-5), (layer, level)


def test_what_tells_of_types_is_where_the_attention_is():
    attention = copy.deepcopy(tiny_loaded("llama").model.model.layers[0].self_attn).to("meta")
    round_cache(attention, "unit", "", ("kv4",))
    assert attention.cache_rounding.places.device.type == "meta"


def test_an_attention_that_keeps_its_keys_to_itself_is_not_taken_for_rounded():
    loaded = tiny_loaded("llama", hidden=128)
    attention = loaded.model.model.layers[0].self_attn
    forward = attention.forward
    with LiveModel(loaded) as live:
        live.apply(Candidate((("model.layers.0.attention.cache", Level(cache="kv4")),)))
        attention.forward = lambda *args, **kwargs: forward(
            *args, **kwargs | {"past_key_values": None}
        )
        with pytest.raises(ModelError, match=r"'model.layers.0.attention.cache': .* hands no keys"):
            loaded.model(ids_of(8))
        attention.forward = forward


def test_only_caches_have_types_of_caches():
    loaded, cache = tiny_loaded("llama"), "model.layers.0.attention.cache"
    with LiveModel(loaded) as live:
        for name, level in (
            (cache, Level(bits="q4_0")),
            ("model.layers.0.mlp", Level(cache="kv4")),
            ("model.layers.0.mlp.up_proj", Level(cache="kv4")),
        ):
            with pytest.raises(LibraryError, match=f"{name} is of kind .* cannot be"):
                live.apply(Candidate(((name, level),)))


def test_what_is_no_cache_of_keys_and_values_is_refused():
    for kind, why in (("bert", "does not tell the next token"), ("resnet", "next token")):
        loaded = tiny_loaded(kind)
        with pytest.raises(ModelError, match=f"space.cache: .*{why}"):
            check_key_value_caches(loaded.family, loaded.model)


@pytest.mark.parametrize("kind", DECODERS)
def test_every_decoder_has_caches(kind):
    loaded = tiny_loaded(kind)
    check_key_value_caches(loaded.family, loaded.model)
    with LiveModel(loaded) as live:
        units = [unit for unit in live.tree if unit.kind == "cache"]
        live.apply(Candidate(tuple((unit.name, Level(cache="kv2")) for unit in units)))
        assert len(units) == 3 and loaded.model(ids_of(8)).logits.isfinite().all()
