"""DarwinLM: its stages' treatments, what they count for, and whole runs that are killed."""

import json

import numpy as np
import pytest
from dying import Killed, dying
from run_files import EVOPRESS, tiny_run, written

from evocompress import api
from evocompress.core.config import SpaceConfig
from evocompress.core.config_file import load_config
from evocompress.core.errors import ConfigError
from evocompress.core.files import read_json
from evocompress.core.finetuning import Recipe
from evocompress.core.requests import UNTREATED, Evaluate, Pool
from evocompress.pipeline.context import Local
from evocompress.pipeline.journal import Journal
from evocompress.pipeline.loop import search
from evocompress.search.base import Problem
from evocompress.search.evolution.darwinlm import DarwinLM
from evocompress.search.evolution.evopress import EvoPress
from evocompress.space import sampling
from evocompress.space.build import build_space
from evocompress.testing.decoders import Decoder
from evocompress.testing.searchers import POOL, Separable, run
from evocompress.testing.tiny import tiny_checkpoint

DECODER = Decoder(layers=6)
WIDTH = {"width": {"multiple_of": 4}, "budget": {"body_params": 0.6}}
SPACE = build_space(DECODER.units(), DECODER.architecture(), SpaceConfig(**WIDTH))
STAGED = {"generations": 5, "offspring": 8, "survivors": (3, 1), "stage_tokens": (128, 512)}
TUNED = STAGED | {"tuning_tokens": (100, 300), "learning_rate": 1e-3}
RECIPES = (Recipe(100, 1e-3), Recipe(300, 1e-3))


def searcher(cls=DarwinLM, **settings):
    return cls(Problem(SPACE, POOL), cls.Settings(**settings), np.random.default_rng(0))


class Trained:
    """Candidates that a training makes as good as another objective says."""

    def __init__(self):
        self.before = Separable.of(SPACE, seed=0)
        self.after = Separable.of(SPACE, seed=1)
        self.answered = []

    def __call__(self, request):
        self.answered.append(request)
        return (self.before if request.treatment == UNTREATED else self.after)(request)

    def map(self, requests):
        return map(self, requests)

    def close(self):
        pass


def test_each_stage_has_its_treatment():
    first, second = (requests for requests, _ in run(searcher(**TUNED), Trained())[:2])
    for requests, recipe, count in ((first, RECIPES[0], 8), (second, RECIPES[1], 4)):
        assert len(requests) == count
        assert {request.treatment for request in requests} == {recipe.treatment}
        assert {request.tuning_tokens for request in requests} == {recipe.tokens}
    assert DarwinLM.Settings(**TUNED).recipes == RECIPES
    assert EvoPress.Settings(**STAGED).recipes == ()


def test_published_defaults():
    pool = Pool((512,) * 64)
    darwin = DarwinLM(Problem(SPACE, pool), DarwinLM.Settings(), np.random.default_rng(0))
    requests = darwin.ask()
    assert len(requests) == 16 and pool.requested(requests[0]) == 1024 + 3 * 10_000
    assert [r.tokens for r in DarwinLM.Settings().recipes] == [10_000, 50_000, 100_000, 200_000]
    assert {recipe.learning_rate for recipe in DarwinLM.Settings().recipes} == {1e-5}


def test_a_treatment_for_each_stage_is_needed():
    with pytest.raises(ConfigError, match="2 stages but 4 tuning_tokens"):
        searcher(**STAGED)


def test_what_a_training_makes_good_is_found():
    oracle, found = Trained(), {}
    for cls, settings in ((DarwinLM, TUNED), (EvoPress, STAGED)):
        search = searcher(cls, **settings | {"generations": 60})
        run(search, oracle)
        found[cls] = search.incumbent().candidate
    tuned, untuned = found[DarwinLM], found[EvoPress]
    assert oracle.after.value(tuned) < oracle.after.value(untuned)
    assert oracle.before.value(untuned) < oracle.before.value(tuned)


def test_training_counts_three_times(tmp_path):
    oracle = Trained()
    with Journal(tmp_path / "j", {}) as journal:
        outcome = search(searcher(**TUNED), oracle, journal, POOL)
        last = journal.steps[-1]
        asked = [
            request for requests, _ in run(searcher(**TUNED), Trained()) for request in requests
        ]
    tokens = {
        request: 64 * len(request.micro_batches) + 3 * request.tuning_tokens for request in asked
    }
    assert last.requested == sum(tokens[request] for request in asked)
    assert last.requested == 5 * (8 * (128 + 300) + 4 * (512 + 900))
    # A tuned candidate that is measured on more micro-batches is tuned again.
    done = [64 * len(r.micro_batches) + 3 * r.tuning_tokens for r in oracle.answered]
    assert last.computed == sum(done) < last.requested
    assert outcome.best.treatment == RECIPES[-1].treatment
    assert 64 * len(outcome.best.micro_batches) == 512


def test_a_journal_answers_treated_and_untreated_requests_apart(tmp_path):
    candidate = SPACE.candidate(sampling.uniform(SPACE))
    plain = Evaluate(candidate, (0, 1))
    treated = RECIPES[0].before(plain)
    oracle = Trained()
    with Journal(tmp_path / "j", {}) as journal:
        journal.record(oracle(plain))
        assert journal.missing([plain, treated]) == [treated]
        journal.record(oracle(treated))
    with Journal(tmp_path / "j", {}) as journal:
        assert journal.result(plain).mean == pytest.approx(oracle.before.value(candidate))
        assert journal.result(treated).mean == pytest.approx(oracle.after.value(candidate))
        assert journal.result(RECIPES[1].before(plain)) is None


SEARCH = EVOPRESS | {
    "name": "darwinlm",
    "generations": 2,
    "tuning_tokens": [50, 120],
    "learning_rate": 1e-3,
}


def test_a_run_that_was_killed_is_resumed_to_the_same_bytes(monkeypatch, tmp_path):
    tiny_checkpoint(tmp_path / "model")
    space = {"width": {"multiple_of": 8}, "budget": {"body_params": 0.7}}
    run = tiny_run(tmp_path, {"library_sequences": 3}, space=space, search=SEARCH)
    written(tmp_path / "trial.yaml", run)

    def config(name):
        words = [f"name={name}", f"library.path={tmp_path / 'library'}"]
        return load_config(tmp_path / "trial.yaml", words)

    whole = api.search(config("whole"))
    records = [json.loads(line) for line in (whole / "journal.jsonl").read_text().splitlines()]
    treatments = {record["treatment"] for record in records if record["type"] == "value"}
    assert treatments == {Recipe(tokens, 1e-3).treatment for tokens in (50, 120)}
    rows = read_json(whole / "front.json")
    winner = read_json(whole / "winner.json")
    assert winner["id"] in {row["id"] for row in rows}
    assert api.report(whole).exists()
    for after in (0, 3, 7):
        with monkeypatch.context() as patch:
            patch.setattr(Local, "executor", dying(after))
            with pytest.raises(Killed):
                api.search(config(f"cut{after}"))
        cut = api.search(config(f"cut{after}"), resume=True)
        for file in ("journal.jsonl", "winner.json", "front.json"):
            assert (cut / file).read_bytes() == (whole / file).read_bytes(), (after, file)
