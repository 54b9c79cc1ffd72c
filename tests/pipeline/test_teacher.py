"""Healing with another teacher than the dense model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

from evocompress.core.config import HealConfig, RunConfig
from evocompress.core.errors import ConfigError, ModelError
from evocompress.core.types import DROP, Candidate
from evocompress.evaluation.heldout import heldout_quality
from evocompress.export import materialize
from evocompress.export.reload import read_checkpoint
from evocompress.healing import heal
from evocompress.models.loading import LoadedModel
from evocompress.pipeline.teacher import teacher_for
from evocompress.testing.tiny import tiny_checkpoint, tiny_loaded

DROPPED = Candidate((("model.layers.1.mlp", DROP),))


@pytest.fixture
def dense() -> LoadedModel:
    return tiny_loaded("llama")


@pytest.fixture
def student(dense: LoadedModel, tmp_path: Path) -> Path:
    return materialize(dense, None, DROPPED, tmp_path / "student")


def tokens(count: int, seed: int) -> Tensor:
    return torch.randint(1, 240, (count, 16), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("changes", [{}, {"average": 2}, {"train": ("lora",)}])
def test_the_student_learns_from_it(
    dense: LoadedModel, student: Path, changes: dict[str, object], tmp_path: Path
) -> None:
    """The teacher is of another family, depth and width."""
    teacher = tiny_loaded("mistral", seed=3, layers=2, hidden=32)
    config = HealConfig.model_validate(
        {"steps": 4, "evaluate_every": 2, "learning_rate": 1e-2, **changes}
    )
    validation = tokens(4, 2)
    report = heal(
        student, teacher, tokens(8, 1), validation, config, tmp_path / "healed", dense=dense
    )
    models = {
        "before": read_checkpoint(student, dense.model),
        "after": read_checkpoint(Path(report.checkpoint), dense.model),
    }
    found = heldout_quality(teacher.model, models, validation)
    assert report.initial_kl == pytest.approx(found["before"].kl, rel=1e-4)
    assert report.best_kl == pytest.approx(found["after"].kl, rel=1e-4)
    assert report.best_kl < report.initial_kl


def test_states_of_another_teacher_are_refused(
    dense: LoadedModel, student: Path, tmp_path: Path
) -> None:
    config, teacher = HealConfig(steps=2, states=1.0), tiny_loaded("llama", seed=3)
    with pytest.raises(ConfigError, match=r"leave heal\.states or heal\.teacher out"):
        heal(student, teacher, tokens(4, 1), tokens(2, 2), config, tmp_path / "h", dense=dense)


def settings(folder: Path, teacher: str | None) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "run",
            "model": {"source": str(folder)},
            "space": {"drop": {}},
            "heal": {"teacher": teacher},
        }
    )


def test_the_dense_model_is_its_own_teacher_unless_another_is_named(
    dense: LoadedModel, tmp_path: Path
) -> None:
    assert teacher_for(settings(tmp_path, None), dense) is dense
    other = tiny_checkpoint(tmp_path / "other", "mistral")
    assert teacher_for(settings(tmp_path, str(other)), dense).family.model_type == "mistral"


def test_a_teacher_for_something_else_is_refused(dense: LoadedModel, tmp_path: Path) -> None:
    other = tiny_checkpoint(tmp_path / "bert", "bert")
    with pytest.raises(ModelError, match="is a model for .*name one for the same"):
        teacher_for(settings(tmp_path, str(other)), dense)


def test_a_teacher_with_other_tokens_is_refused(tmp_path: Path) -> None:
    small = tiny_loaded("llama", vocabulary=300)
    other = tiny_checkpoint(tmp_path / "other", "llama")
    with pytest.raises(ModelError, match="has 256 outputs, and .* has 300"):
        teacher_for(settings(tmp_path, str(other)), small)
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(other)
    with pytest.raises(ModelError, match="has another tokenizer"):
        teacher_for(settings(tmp_path, str(other)), tiny_loaded("llama"))
