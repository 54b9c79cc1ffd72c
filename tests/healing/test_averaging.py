"""Averages of several healings: against the mean of the weights in the files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from evocompress.core.config import HealConfig
from evocompress.core.errors import RunError
from evocompress.healing import averaging, heal, heal_in_cycles
from evocompress.healing.distillation import Distillation
from evocompress.healing.student import load_student
from evocompress.models.loading import LoadedModel

CONFIG = HealConfig(steps=4, batch=2, accumulate=2, evaluate_every=4, learning_rate=3e-3, average=3)


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def averages_measure(divergences: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Says what the averages measure, one after the other, once the last of three is healed."""
    real, values = averaging.distil, iter(divergences)

    def healed(*given: object, **more: object) -> object:
        report = real(*given, **more)  # type: ignore[arg-type]
        if Path(report.checkpoint).parent.name == "2":
            monkeypatch.setattr(Distillation, "mean", lambda _: next(values))
        return report

    monkeypatch.setattr(averaging, "distil", healed)


def test_the_average_is_of_those_that_lower_the_divergence(
    teacher: LoadedModel, student: Path, train: Tensor, validation: Tensor, tmp_path: Path
) -> None:
    report = heal(student, teacher, train, validation, CONFIG, tmp_path / "healed")
    members = [tmp_path / "healed" / "members" / str(number) for number in range(3)]
    assert len(set(report.members)) == 3, "the healings are all the same"
    assert report.best_kl <= min(report.members)
    assert report.tokens == 3 * 4 * 4 * 16
    averaged = weights(tmp_path / "healed" / "checkpoint")
    parts = [weights(members[number] / "checkpoint") for number in report.averaged]
    for name, weight in averaged.items():
        torch.testing.assert_close(weight, sum(part[name] for part in parts) / len(parts))
    for name, weight in weights(student).items():
        if "mlp" in name:
            assert torch.equal(averaged[name] == 0, weight == 0), name
    model = load_student(tmp_path / "healed" / "checkpoint", teacher)
    measured = Distillation(model, teacher, validation, 2).mean()
    assert measured == pytest.approx(report.best_kl, rel=1e-5)
    assert json.loads((tmp_path / "healed" / "heal.json").read_text())["averaged"]


def test_a_healing_that_is_there_is_not_written_over(
    teacher: LoadedModel, student: Path, train: Tensor, validation: Tensor, tmp_path: Path
) -> None:
    given = (student, teacher, train, validation)
    heal(*given, CONFIG.model_copy(update={"average": 1}), tmp_path / "healed")
    before = (tmp_path / "healed" / "heal.json").read_bytes()
    with pytest.raises(RunError, match="exists: resume it"):
        heal(*given, CONFIG, tmp_path / "healed")
    cycles = HealConfig(tokens="auto")
    with pytest.raises(RunError, match="exists: resume it"):
        heal_in_cycles(
            student, teacher, lambda count: train[:count], validation, cycles, tmp_path / "healed"
        )
    assert (tmp_path / "healed" / "heal.json").read_bytes() == before
    assert not (tmp_path / "healed" / "members").exists()


def test_one_that_spoils_the_average_is_left_out(
    teacher: LoadedModel,
    student: Path,
    train: Tensor,
    validation: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    averages_measure([5.0, 0.0], monkeypatch)
    report = heal(student, teacher, train, validation, CONFIG, tmp_path / "healed")
    order = sorted(range(3), key=lambda number: report.members[number])
    assert list(report.averaged) == [order[0], order[2]]
    assert report.best_kl == 0.0


def test_the_average_leaves_what_was_not_trained(
    teacher: LoadedModel,
    student: Path,
    train: Tensor,
    validation: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A third of three times a number is often another one."""
    averages_measure([1e-3, 1e-4], monkeypatch)
    config = CONFIG.model_copy(update={"train": ("norms",)})
    report = heal(student, teacher, train, validation, config, tmp_path / "healed")
    assert len(report.averaged) == 3
    before, after = weights(student), weights(tmp_path / "healed" / "checkpoint")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all("norm" in name for name in moved)


def test_an_interrupted_one_ends_in_the_same_average(
    teacher: LoadedModel, student: Path, train: Tensor, validation: Tensor, tmp_path: Path
) -> None:
    config = CONFIG.model_copy(update={"average": 2, "evaluate_every": 2})
    heal(student, teacher, train, validation, config, tmp_path / "whole")

    def stop(done: float, total: float, text: str) -> None:
        assert total == 8
        if done == 7:
            raise KeyboardInterrupt

    folder = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        heal(student, teacher, train, validation, config, folder, progress=stop)
    assert not (folder / "heal.json").exists()
    heal(student, teacher, train, validation, config, folder, resume=True)
    first, second = (weights(tmp_path / name / "checkpoint") for name in ("whole", "parts"))
    assert all(torch.equal(first[name], second[name]) for name in first)
