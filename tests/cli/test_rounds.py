"""Rounds of searching and healing from the command line, on a tiny model."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_files import EVOPRESS, small_run, written

from evocompress.cli import commands as cli
from evocompress.core.config import RunConfig
from evocompress.export.reload import read_checkpoint
from evocompress.models.loading import load
from evocompress.pipeline.rounds.schedule import rounds_of
from evocompress.testing.tiny import tiny_checkpoint

WIDTHS: dict[str, Any] = {
    "width": {"multiple_of": 8, "channels": [0.9, 0.8, 0.7, 0.6, 0.5]},
    "budget": {"body_params": 0.49},
}
ZEROS: dict[str, Any] = {"sparsity": {"target": 0.64, "step": 128, "levels": 2}}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    tiny_checkpoint(tmp_path / "model")
    return tmp_path


def run_file(home: Path, space: dict[str, Any], **changes: Any) -> Path:
    kept = small_run(home, name="twice", rounds=2, space=space, search=EVOPRESS, **changes)
    return written(home / "twice.yaml", kept)


def call(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> str | int | None:
    monkeypatch.setattr(sys, "argv", ["evocompress", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    found = json.loads((folder / "evaluation.json").read_text())["rows"]
    return {row["name"]: row for row in found}


def test_rounds_drop_experts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "model", "mixtral")
    space = {"drop": {"units": ["expert"], "protect": []}, "budget": {"body_params": 0.75}}
    assert call(monkeypatch, "rounds", run_file(tmp_path, space)) == 0
    folder = tmp_path / "runs" / "twice"
    checkpoints = [folder / f"round-{number}/heal/checkpoint" for number in (1, 2)]
    counts = [experts_of(one) for one in (tmp_path / "model", *checkpoints)]
    assert counts[0] > counts[1] > counts[2]


def experts_of(folder: Path) -> int:
    """How many experts a model has."""
    model = load(str(folder))
    return sum(unit.kind == "expert" for unit in model.family.units(model.model))


@pytest.mark.parametrize("space", [WIDTHS, ZEROS], ids=["widths", "zeros"])
def test_each_round_cuts_a_part_of_what_the_one_before_healed(
    monkeypatch: pytest.MonkeyPatch, home: Path, space: dict[str, Any]
) -> None:
    file, folder = run_file(home, space), home / "runs" / "twice"
    assert call(monkeypatch, "rounds", file) == 0
    found = rows(folder)
    names = ["dense", "round 1", "round 1, healed", "round 2", "round 2, healed"]
    assert list(found) == names
    second = yaml.safe_load((folder / "round-2" / "config.yaml").read_text())
    assert second["model"]["source"] == str(folder / "round-1" / "heal" / "checkpoint")
    assert second["heal"]["teacher"] == str(home / "model")
    for number in (1, 2) if space is WIDTHS else ():
        winner = json.loads((folder / f"round-{number}" / "winner.json").read_text())
        assert winner["costs"]["body_params"] <= 0.7 * winner["dense_costs"]["body_params"]
    assert found["round 2, healed"]["nonzeros"] < found["round 1, healed"]["nonzeros"]
    assert found["dense"]["kl"] == 0 < found["round 2, healed"]["kl"]
    assert (folder / "report.html").exists() and "round 2" in (folder / "summary.md").read_text()


def test_zeros_of_the_first_round_stay_in_the_second(
    monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    assert call(monkeypatch, "rounds", run_file(home, ZEROS)) == 0
    dense, folder = load(str(home / "model")).model, home / "runs" / "twice"
    first, second = (
        dict(read_checkpoint(folder / f"round-{n}/heal/checkpoint", dense).named_parameters())
        for n in (1, 2)
    )
    blocks = [name for name, one in first.items() if ".layers." in name and one.ndim > 1]
    grown = [int((second[n] == 0).sum()) - int((first[n] == 0).sum()) for n in blocks]
    assert sum(grown) > 0
    share = sum(int((second[n] == 0).sum()) for n in blocks) / sum(
        second[n].numel() for n in blocks
    )
    assert share == pytest.approx(0.64, abs=0.01)


def test_interrupted_rounds_go_on(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    file, folder = run_file(home, WIDTHS), home / "runs" / "twice"
    assert call(monkeypatch, "rounds", file) == 0
    whole = rows(folder)
    shutil.rmtree(folder / "round-2" / "heal")
    (folder / "evaluation.json").unlink()
    assert "exists already" in str(call(monkeypatch, "rounds", file))
    assert call(monkeypatch, "rounds", file, "--resume") == 0
    assert rows(folder) == whole
    assert "differ" in str(call(monkeypatch, "rounds", file, "--resume", "seed=7"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["rounds=1"], "one round is a search by itself"),
        (["space.budget={latency: 0.5}"], "not measured where layers differ"),
        (["space.budget={nonzeros: 0.5}"], "give sparsity.target"),
        (["space.budget={params: 50000}"], "is an amount: give a fraction"),
        (["search={name: nsga2, objectives: [params]}"], "asks for a front"),
        (["space.sparsity={target: 0.5, pattern: '2:4'}"], "leave out sparsity.pattern"),
        (["space.width.uniform=true"], "width.uniform ties layers"),
        (["space.drop={units: [block], merge: true}"], "drop.merge adds up blocks"),
        (["library.path=shared"], "each round has its own"),
        (["space.fits=stock"], "rounds write the format hf"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_what_does_not_go_is_told_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch, home: Path, words: list[str], told: str
) -> None:
    said = str(call(monkeypatch, "rounds", run_file(home, WIDTHS), *words))
    assert told in said and len(said.splitlines()) == 1
    assert not (home / "runs").exists()


def test_a_cnn_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "model", "resnet")
    said = str(
        call(monkeypatch, "rounds", run_file(tmp_path, {"drop": {}, "budget": {"params": 0.5}}))
    )
    assert "'resnet' cannot be compressed again" in said and not (tmp_path / "runs").exists()


def test_a_search_makes_no_rounds(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    said = str(call(monkeypatch, "search", run_file(home, WIDTHS)))
    assert said.endswith("2 rounds are made by 'evocompress rounds'")


def test_shares_multiply_to_the_budget() -> None:
    config = RunConfig.model_validate(
        {"name": "r", "model": {"source": "m"}, "rounds": 3, "space": WIDTHS | ZEROS}
    )
    shares = [one.space.budget["body_params"] for one in rounds_of(config)]
    assert shares[0] * shares[1] * shares[2] == pytest.approx(0.49)
    targets = [one.space.sparsity.target for one in rounds_of(config) if one.space.sparsity]
    assert targets == sorted(targets) and targets[-1] == pytest.approx(0.64)
    left = [1 - target for target in targets]
    assert left[1] / left[0] == pytest.approx(left[0]) == pytest.approx(left[2] / left[1])
