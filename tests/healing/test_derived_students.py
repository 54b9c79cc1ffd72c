"""Healing of structurally different models whose family is derived."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from evocompress.core.config import HealConfig
from evocompress.core.types import DROP, Level
from evocompress.export import materialize, read_record
from evocompress.healing import HealReport, heal
from evocompress.healing.distillation import Distillation
from evocompress.models.families import family_of
from evocompress.models.families.base import prepare
from evocompress.models.families.derivation.derived import Derived
from evocompress.models.loading import LoadedModel
from evocompress.models.loading import loaded as loaded_model
from evocompress.models.tasks import EMBEDDINGS
from evocompress.space.costs import cost_model
from evocompress.testing.derived import running_model, typical_config, typical_loaded
from evocompress.testing.formats import candidate_of, heads, reload, with_zeros
from evocompress.testing.plain_library import PlainLibrary
from evocompress.testing.probes import answer, random_batch

CONFIG = HealConfig(steps=3, batch=2, accumulate=1, learning_rate=1e-3, evaluate_every=1)

STUDENTS: dict[str, tuple[str, str, str]] = {
    "qwen3_next": ("0.attention", "1.attention", "2.mlp"),
    "gpt_oss": ("0.mlp", "1.attention", "2.mlp"),
    "deepseek_v3": ("0.attention", "1.attention", "2.mlp"),
    "gemma4_text sharing": ("4.attention", "0.attention", "5.mlp"),
    "lfm2": ("0.attention", "1.attention", "2.mlp"),
    "nemotron_h": ("0.attention", "2.attention", "1.mlp"),
    "llama4_text": ("1.mlp", "0.attention", "2.mlp"),
    "modernbert": ("1.attention", "2.attention", "0.mlp"),
}
"""By type what is dropped, what loses heads and what loses channels.

A gated attention and a delta rule; sinks and experts with biases; latent attention and a dense
block before mixtures; keys that layers share; convolutions; blocks of a single mixer; experts that
are stored transposed; an encoder.
"""


def teacher_of(name: str) -> LoadedModel:
    task = EMBEDDINGS if name == "modernbert" else None
    loaded = typical_loaded(typical_config(name), task=task)
    assert isinstance(loaded.family, Derived)
    return loaded


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def assert_healed(
    report: HealReport, student: Path, teacher: LoadedModel, validation: Tensor
) -> None:
    """The divergence is less, what was zero is so, and the checkpoint is what was measured."""
    assert math.isfinite(report.best_kl) and report.best_kl < report.initial_kl
    before, after = weights(student), weights(Path(report.checkpoint))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    for name, tensor in before.items():
        assert (tensor.shape, tensor.dtype) == (after[name].shape, after[name].dtype), name
        gone = (tensor == 0) & name.endswith(("weight", "proj"))
        assert not after[name][gone].any(), name
    model = reload(Path(report.checkpoint), teacher.family.task)
    again = Distillation(model, teacher, validation, CONFIG.batch).mean()
    assert again == pytest.approx(report.best_kl, rel=1e-4)


@pytest.mark.parametrize("name", STUDENTS)
def test_students_of_all_kinds_are_healed(
    name: str, train: Tensor, validation: Tensor, tmp_path: Path
) -> None:
    teacher = teacher_of(name)
    dropped, narrow, few = STUDENTS[name]
    channels = teacher.family.architecture(teacher.model).channels[int(few[0])]
    levels = {dropped: DROP, narrow: heads(teacher)[0], few: Level(channels=channels // 2)}
    candidate = candidate_of(teacher, with_zeros(teacher, levels))
    student = materialize(teacher, PlainLibrary(teacher), candidate, tmp_path / "student")
    report = heal(student, teacher, train, validation, CONFIG, tmp_path / "heal")
    assert sum(int((tensor == 0).sum()) for tensor in weights(student).values()) > 1000
    assert_healed(report, student, teacher, validation)


def test_a_resumed_healing_of_a_hybrid_mixture_ends_in_the_same_bytes(
    train: Tensor, validation: Tensor, tmp_path: Path
) -> None:
    teacher = teacher_of("qwen3_next")
    candidate = candidate_of(teacher, with_zeros(teacher, {"1.mlp": DROP}))
    student = materialize(teacher, PlainLibrary(teacher), candidate, tmp_path / "student")

    def stop(done: float, total: float, text: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    heal(student, teacher, train, validation, CONFIG, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        heal(student, teacher, train, validation, CONFIG, tmp_path / "cut", progress=stop)
    heal(student, teacher, train, validation, CONFIG, tmp_path / "cut", resume=True)
    files = [tmp_path / run / "checkpoint" / "model.safetensors" for run in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()


def in_float32(name: str) -> LoadedModel:
    """The kernels for all experts at once, which classes of transformers use, know no float64."""
    model = running_model(typical_config(name)).float()
    model.config.dtype = torch.float32
    prepare(family_of(model), model)
    return loaded_model(model, None, f"tiny:{name}")


@pytest.mark.parametrize("name", ["granitemoe", "gpt_oss", "qwen2_moe"])
def test_healed_mixtures_of_their_own_class_are_read_by_it(
    name: str, train: Tensor, validation: Tensor, tmp_path: Path
) -> None:
    """And are written in another format with what was healed."""
    teacher = in_float32(name)
    candidate = candidate_of(teacher, with_zeros(teacher, {"1": DROP}))
    student = materialize(
        teacher, PlainLibrary(teacher), candidate, tmp_path / "student", format="stock"
    )
    report = heal(student, teacher, train, validation, CONFIG, tmp_path / "heal")
    assert_healed(report, student, teacher, validation)
    healed = Path(report.checkpoint)
    stock, info = type(teacher.model).from_pretrained(healed, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected = outputs(stock, teacher)
    for format in ("stock", "hf"):
        out = tmp_path / format
        materialize(teacher, None, candidate, out, format=format, healed=healed)
        found = outputs(reload(out), teacher)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def outputs(model: object, teacher: LoadedModel) -> Tensor:
    batch = random_batch(teacher.family, teacher.model)
    return answer(teacher.family, model, batch)  # type: ignore[arg-type]


def test_zeros_of_experts_in_one_tensor_are_counted(tmp_path: Path) -> None:
    teacher = typical_loaded(typical_config("granitemoe"))
    candidate = candidate_of(teacher, with_zeros(teacher, {"1": DROP}))
    out = materialize(teacher, PlainLibrary(teacher), candidate, tmp_path / "out", format="stock")
    family, model, measured = teacher.family, teacher.model, read_record(out).measured
    costs = cost_model(family.units(model), family.architecture(model)).of([candidate])
    assert measured == {cost: costs[cost].item() for cost in measured}
