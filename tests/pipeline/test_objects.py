"""A search with a searcher and a proxy that are not installed, and what is done with its winner."""

from __future__ import annotations

import json
import shutil

import pytest
from run_files import EVOPRESS, write_run

from evocompress import api
from evocompress.core.config_file import load_config
from evocompress.core.errors import ConfigError, RunError
from evocompress.evaluation.proxies import PROXIES
from evocompress.evaluation.proxies.perplexity import LogPerplexity
from evocompress.pipeline.journal import read_header
from evocompress.search import SEARCHERS
from evocompress.search.baselines.random_search import RandomSearch
from evocompress.testing.tiny import tiny_checkpoint


class OwnSearch(RandomSearch):
    """A searcher of a user."""


class OtherSearch(RandomSearch):
    """Another one."""


class OwnLoss(LogPerplexity):
    """A proxy of a user."""

    name = "own loss"


SEARCHER, PROXY = f"{__name__}:OwnSearch", f"{__name__}:OwnLoss"
GIVEN = {"searcher": OwnSearch, "proxy": OwnLoss}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("objects")
    tiny_checkpoint(home / "model")
    return home


def config_of(home, run, **changes):
    search = {key: value for key, value in EVOPRESS.items() if key != "name"} | changes
    return load_config(write_run(home, name=run, search=search))


@pytest.fixture(scope="module")
def run(home):
    return api.search(config_of(home, "run"), **GIVEN)


@pytest.fixture
def forgotten(run):
    """A process in which the objects of the run were never given."""
    del SEARCHERS[SEARCHER], PROXIES[PROXY]
    yield run
    SEARCHERS.give(OwnSearch)
    PROXIES.give(OwnLoss)


def test_header_and_configuration_name_the_objects(run):
    header = read_header(run / "journal.jsonl")
    assert (header["searcher"], header["proxy"]["kind"]) == (SEARCHER, PROXY)
    assert header["settings"]["generations"] == 3
    saved = load_config(run / "config.yaml")
    assert (saved.search.name, saved.proxy.kind) == (SEARCHER, PROXY)


def test_the_values_are_those_of_the_same_classes_by_name(run, home):
    named = write_run(
        home,
        name="named",
        proxy={"kind": "perplexity"},
        search=EVOPRESS | {"name": "random"},
    )
    other = api.search(load_config(named))
    one, two = (json.loads((folder / "winner.json").read_text()) for folder in (run, other))
    assert one == two


def test_a_run_goes_on_with_the_same_objects_only(run, home, forgotten):
    saved = load_config(run / "config.yaml")
    with pytest.raises(ConfigError) as caught:
        api.search(saved, resume=True)
    assert str(caught.value) == (
        f"search.name: the searcher '{SEARCHER}' is an object that evocompress.api.search was "
        "given: give it again"
    )
    with pytest.raises(ConfigError, match=f"search.name={SEARCHER}, but .*OtherSearch is given"):
        api.search(saved, resume=True, searcher=OtherSearch)
    with pytest.raises(ConfigError, match="^proxy.kind: the proxy '.*:OwnLoss' is an object"):
        api.search(saved, resume=True, searcher=OwnSearch)
    with pytest.raises(RunError, match="another configuration .search.name differ"):
        api.search(config_of(home, "run"), resume=True, searcher=OtherSearch, proxy=OwnLoss)
    before = (run / "journal.jsonl").read_bytes()
    assert api.search(saved, resume=True, **GIVEN) == run
    assert (run / "journal.jsonl").read_bytes() == before


def test_a_run_that_was_moved_needs_no_object_either(forgotten, tmp_path):
    moved = shutil.copytree(forgotten, tmp_path / "moved")
    api.materialize(moved)
    api.heal(moved)
    assert api.evaluate(moved, ["evaluate.latency=false"]).parent == moved


def test_what_comes_after_the_search_needs_no_object(forgotten):
    api.materialize(forgotten)
    api.heal(forgotten)
    api.evaluate(forgotten)
    page = api.report(forgotten).read_text()
    assert f"value of proxy {PROXY}" in page and SEARCHER in page


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"searcher": OwnSearch}, "search.name=random, but .*:OwnSearch is given: leave out one"),
        ({"searcher": 5}, "^5 cannot be a searcher: give a class"),
        ({"proxy": "kl"}, "^'kl' cannot be a proxy: give a class"),
        ({"proxy": OwnSearch}, "OwnSearch'> cannot be a proxy"),
        ({"searcher": OwnLoss}, "OwnLoss'> cannot be a searcher"),
    ],
)
def test_what_cannot_serve_is_one_line(home, given, reason):
    with pytest.raises(ConfigError, match=reason) as caught:
        api.search(config_of(home, "wrong", name="random"), **given)
    assert "\n" not in str(caught.value) and not (home / "runs" / "wrong").exists()


def test_settings_of_an_object_are_checked_by_its_class(home):
    with pytest.raises(ConfigError, match="unknown key 'search.generation': did you mean"):
        api.search(config_of(home, "typo", generation=3), searcher=OwnSearch)
