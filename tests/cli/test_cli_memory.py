"""A budget of memory from the run file to the winner."""

import pytest
from run_files import tiny_run, written

from evocompress import api
from evocompress.core.config_file import load_config
from evocompress.core.errors import BudgetError, ConfigError
from evocompress.core.files import read_json
from evocompress.testing.tiny import tiny_checkpoint

SERVED = {"context": 48, "batch": 8, "engine": "llama.cpp"}


def config_of(home, bound, served=SERVED):
    if not (home / "model").exists():
        tiny_checkpoint(home / "model")
    settings = {"drop": {}, "budget": {"memory": bound}, "memory": served}
    run = tiny_run(home, space=settings, search={"name": "evopress", "generations": 2})
    return load_config(written(home / "run.yaml", run))


def test_the_winner_fits_the_memory(tmp_path):
    config = config_of(tmp_path, "3.5MiB")
    folder = api.search(config)
    winner = read_json(folder / "winner.json")
    assert winner["budget"] == {"memory": 3.5 * 2**20}
    assert winner["costs"]["memory"] <= 3.5 * 2**20 < winner["dense_costs"]["memory"]


def test_what_cannot_be_is_one_line(tmp_path):
    for bound, served, error, said in (
        ("1KiB", SERVED, BudgetError, "cannot be reached; this space spans"),
        ("1TiB", SERVED, BudgetError, "is met by every candidate; this space spans"),
        ("1 mebi", SERVED, ConfigError, "memory: '1 mebi' is no size: give bytes"),
        (0.5, SERVED | {"context": 10**6}, ConfigError, "space.memory.context 1000000: give 1 to"),
        (0.5, None, ConfigError, "budget.memory is told at a context: give space.memory"),
    ):
        with pytest.raises(error) as raised:
            api.search(config_of(tmp_path, bound, served))
        assert said in str(raised.value) and "\n" not in str(raised.value)
