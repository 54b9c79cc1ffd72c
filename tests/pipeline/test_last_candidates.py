"""The last candidates of a search are healed for a short time before one of them wins."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from run_files import TEXT, small_run

from evocompress import api
from evocompress.core.config import HealConfig, RunConfig
from evocompress.core.errors import ConfigError, EvoCompressError, HealingDiverged
from evocompress.core.progress import Silent
from evocompress.evaluation.calibration.calibration import load_calibration
from evocompress.evaluation.calibration.fresh import FreshText
from evocompress.export import materialize
from evocompress.healing import HealReport, heal
from evocompress.models.loading import LoadedModel, load
from evocompress.pipeline import search_stage, short_healing
from evocompress.pipeline.context import Local, RunContext
from evocompress.pipeline.finished import finished
from evocompress.pipeline.journal_memory import Memory, ShortHealing
from evocompress.pipeline.results import front_rows
from evocompress.pipeline.short_healing import HealEach, ShortRecipe
from evocompress.pipeline.stages import search
from evocompress.pipeline.winner import HealedCandidate, change_of_order
from evocompress.testing.tiny import tiny_checkpoint

HEAL_LAST = {"candidates": 3, "tokens": 500}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its text, and a finished search of it with its level library."""
    home = tmp_path_factory.mktemp("last")
    tiny_checkpoint(home / "model")
    api.search(RunConfig.model_validate(small_run(home, name="plain")))
    return home


def run_of(made: Path, name: str, **changes: Any) -> RunConfig:
    """The same search with short healings of its last candidates."""
    run = small_run(made, name=name, library={"path": str(made / "runs" / "plain" / "library")})
    run["search"] = run["search"] | {"heal_last": HEAL_LAST}
    return RunConfig.model_validate(run | changes)


@pytest.fixture(scope="module")
def whole(made: Path) -> Path:
    """A search that was not disturbed."""
    return api.search(run_of(made, "whole"))


def test_the_best_after_healing_wins_and_the_values_are_those_of_healing_by_hand(
    made: Path, whole: Path, tmp_path: Path
) -> None:
    config = run_of(made, "whole")
    winner, context = finished(whole, None).folder.read_winner(), finished(whole, None)
    last = winner.healed_last
    assert len(last) == 3 and [row.value for row in last] == sorted(row.value for row in last)
    assert winner.id == min(last, key=lambda row: row.after or 0).id
    loaded, candidates = load(str(made / "model")), Memory(whole / "journal.jsonl").candidates
    calibration = load_calibration(config.calibration, loaded)
    # 4 x 128 tokens.
    own = HealConfig(steps=4, batch=4, evaluate_every=2, validation_sequences=2)
    text = FreshText(own, config.calibration, loaded, calibration)
    train, validation = text.take_both(own.sequences, 2)
    for row in last:
        folder = tmp_path / row.id
        library = context.existing_library()
        plain = materialize(loaded, library, candidates[row.id], folder / "plain")
        report = heal(plain, loaded, train, validation, own, folder / "healed")
        assert (row.before, row.after) == (report.initial_kl, report.best_kl)
        assert report.tokens == 512


def test_the_text_that_chooses_is_in_no_other_part(made: Path) -> None:
    """Nor in what is trained on, now or by a longer healing of the same run."""
    config = run_of(made, "text")
    loaded = load(str(made / "model"))
    calibration = load_calibration(config.calibration, loaded)
    recipe = short_healing.short_recipe(config, loaded, calibration, Silent())
    assert recipe is not None
    longer = FreshText(config.heal, config.calibration, loaded, calibration)
    trained, validation = longer.take_both(40, config.heal.validation_sequences)
    assert torch.equal(recipe.validation, validation)
    parts = [calibration.library, *calibration.search, calibration.heldout, recipe.train, trained]
    seen = {tuple(row.tolist()) for part in parts for row in part}
    assert not seen & {tuple(row.tolist()) for row in recipe.validation}


def test_without_it_nothing_is_another(made: Path, whole: Path) -> None:
    plain = made / "runs" / "plain"
    assert (whole / "front.json").read_bytes() == (plain / "front.json").read_bytes()
    assert "healed_last" not in json.loads((plain / "winner.json").read_text())
    assert "heal_last" not in Memory(plain / "journal.jsonl").header
    assert Memory(plain / "journal.jsonl").steps == Memory(whole / "journal.jsonl").steps
    assert not (whole / "last_candidates").exists()


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("done", [False, True], ids=["within a healing", "after a healing"])
def test_a_kill_loses_nothing(
    made: Path, whole: Path, number: int, done: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither before nor after what a healing wrote last; every byte is that of a whole run."""
    healed, name = [0], f"killed-{number}-{done}"

    def killed(*args: Any, **options: Any) -> HealReport:
        healed[0] += 1
        if healed[0] != number:
            return heal(*args, **options)
        if done:
            heal(*args, **options)
            raise KeyboardInterrupt
        return heal(*args, **options | {"progress": stopped})

    def stopped(step: float, total: float, text: str) -> None:
        if step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(short_healing, "heal", killed)
    with pytest.raises(KeyboardInterrupt):
        api.search(run_of(made, name))
    run = made / "runs" / name
    assert not (run / "winner.json").exists()
    assert len(Memory(run / "journal.jsonl").healed) == number - 1
    monkeypatch.undo()
    api.search(run_of(made, name), resume=True)
    for file in ("journal.jsonl", "winner.json", "front.json"):
        assert (run / file).read_bytes() == (whole / file).read_bytes()
    assert not (run / "last_candidates").exists()


def test_a_finished_search_heals_nothing_again(
    made: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("journal.jsonl", "winner.json")
    before = [(whole / name).read_bytes() for name in names]
    monkeypatch.setattr(short_healing, "heal", None)
    api.search(run_of(made, "whole"), resume=True)
    assert [(whole / name).read_bytes() for name in names] == before


class Told(Local):
    """Heals nothing, and tells these values in the order of the proxy."""

    def __init__(self, *values: float | None) -> None:
        self.values = values

    def healing(self, context: RunContext) -> HealEach:
        def each(
            loaded: LoadedModel, students: Sequence[Path], recipe: ShortRecipe, force: bool
        ) -> Iterator[ShortHealing]:
            for _, value in zip(students, self.values, strict=True):
                yield ShortHealing(value and 0.5, value, None if value else "diverged")

        return each


@pytest.mark.parametrize(
    ("values", "place", "said"),
    [
        ((0.3, 0.2, 0.1), 2, "wins, which was number 3 before"),
        ((0.3, 0.1, 0.2), 1, "wins, which was number 2 before"),
        ((0.1, 0.3, 0.2), 0, "the order is another, and"),
        ((0.1, 0.2, 0.3), 0, "the order is as before"),
        ((0.2, 0.2, 0.2), 0, "the order is as before"),
        ((None, 0.3, 0.2), 2, "wins, which was number 3 before"),
        ((None, None, None), 0, "None of the last candidates could be healed"),
    ],
)
def test_the_winner_is_the_best_that_could_be_healed(
    made: Path, values: tuple[float | None, ...], place: int, said: str
) -> None:
    name = f"told-{'-'.join(map(str, values))}"
    run = search(run_of(made, name), Told(*values))
    winner = finished(run, None).folder.read_winner()
    front = {row["id"]: row["value"] for row in json.loads((run / "front.json").read_text())}
    by_proxy = sorted(front, key=lambda one: front[one])[:3]
    assert [row.id for row in winner.healed_last] == by_proxy
    assert winner.id == by_proxy[place] and winner.value == front[winner.id]
    assert [row.after for row in winner.healed_last] == list(values)
    assert said in change_of_order(winner.healed_last)
    assert said in (run / "log.txt").read_text() and said in _page(run)
    api.materialize(run)


def test_the_winner_by_the_proxy_is_healed_first_whatever_the_others_values_are(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the last comparison's text alone a candidate may be better that the search refused."""

    def upside_down(*args: Any, **options: Any) -> list[dict[str, Any]]:
        return [row | {"value": -row["value"]} for row in front_rows(*args, **options)]

    monkeypatch.setattr(search_stage, "front_rows", upside_down)
    plain = finished(made / "runs" / "plain", None).folder.read_winner()
    run = search(run_of(made, "upside-down"), Told(0.1, 0.3, 0.2))
    first, *others = finished(run, None).folder.read_winner().healed_last
    assert first.id == plain.id == finished(run, None).folder.read_winner().id
    assert first.value > max(row.value for row in others)
    assert f"and {plain.id} wins as before" in (run / "log.txt").read_text()


def _page(run: Path) -> str:
    api.report(run)
    summary = (run / "summary.md").read_text()
    assert "## Last candidates" in summary
    return summary


def test_a_candidate_that_diverges_cannot_win(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter([True, False, False])

    def diverging(*args: Any, **options: Any) -> HealReport:
        if next(calls):
            raise HealingDiverged("at step 1")
        return heal(*args, **options)

    monkeypatch.setattr(short_healing, "heal", diverging)
    winner = finished(api.search(run_of(made, "diverging")), None).folder.read_winner()
    first, *others = winner.healed_last
    assert (first.before, first.after, first.reason) == (None, None, short_healing.DIVERGED)
    assert winner.id == min(others, key=lambda row: row.after or 0).id


def test_with_more_tokens_what_was_healed_is_not_healed_again(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def limited(tokens: int, **options: Any) -> Path:
        run = run_of(made, "more")
        longer = run.search.model_copy(update={"tokens": tokens})
        return api.search(run.model_copy(update={"search": longer}), **options)

    before = Memory(limited(100_000) / "journal.jsonl").healed
    monkeypatch.setattr(short_healing, "heal", None)
    assert Memory(limited(200_000, resume=True) / "journal.jsonl").healed == before


def test_a_search_with_one_candidate_has_nothing_to_choose_from(made: Path) -> None:
    config = run_of(made, "one", search={"name": "uniform", "heal_last": HEAL_LAST})
    run = api.search(config)
    assert "healed_last" not in json.loads((run / "winner.json").read_text())
    assert "no second candidate was compared with the winner" in (run / "log.txt").read_text()


FRONT = {"name": "nsga2", "objectives": ["matrix_nonzeros"], "population": 4, "tokens": 20_000}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search": {"heal_last": {"tokens": 127}}}, "127 are less than .* which is 128"),
        ({"search": FRONT | {"heal_last": {}}}, "chooses one winner, and this search is for a"),
        ({"heal": {"source": "gone.txt"}}, "heal.source: gone.txt does not exist"),
    ],
)
def test_what_cannot_be_is_refused_before_the_folder_is_made(
    made: Path, changes: dict[str, Any], message: str
) -> None:
    config = run_of(made, "refused", **changes)
    with pytest.raises(EvoCompressError, match=message):
        api.search(config)
    assert not config.folder.exists()


def test_text_that_is_at_its_end_is_refused_before_the_search(made: Path) -> None:
    short = made / "short.txt"
    short.write_text(TEXT[:4500])
    run = small_run(made, name="short")
    run["calibration"] |= {"source": str(short)}
    run["search"] = run["search"] | {"heal_last": HEAL_LAST}
    config = RunConfig.model_validate(run | {"heal": {"validation_sequences": 500}})
    with pytest.raises(EvoCompressError, match="has nothing left for healing"):
        api.search(config)
    assert not config.folder.exists()


@pytest.mark.parametrize("wrong", [{"candidates": 1}, {"tokens": 0}, {"steps": 3}, 4])
def test_wrong_settings_are_refused(made: Path, wrong: object) -> None:
    with pytest.raises(ValueError, match="heal_last"):
        run_of(made, "wrong", search={"heal_last": wrong})


def test_the_change_of_order_of_equals() -> None:
    rows = [HealedCandidate(name, 0.1, 0.5, 0.2) for name in "ab"]
    assert change_of_order(rows) == (
        "Short healings of 2 candidates: the order is as before, and a wins."
    )


def test_a_front_is_refused_by_what_the_searcher_is_for() -> None:
    config = RunConfig.model_validate(
        {"name": "n", "model": {"source": "m"}, "space": {"drop": {}}, "search": {"heal_last": {}}}
    )
    given = (config.search.heal_last, config.heal.sized(512), 512)
    short_healing.check_short_healing(*given, ())
    with pytest.raises(ConfigError, match="a front of params, flops"):
        short_healing.check_short_healing(*given, ("params", "flops"))
