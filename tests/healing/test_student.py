"""What of a student stays zero."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from evocompress.core.config import HealConfig
from evocompress.core.types import DROP, Candidate, Level
from evocompress.export import materialize
from evocompress.healing import heal
from evocompress.healing.student import load_student, zero_masks
from evocompress.models.loading import LoadedModel
from evocompress.testing.formats import candidate_of
from evocompress.testing.plain_library import PlainLibrary
from evocompress.testing.staged import require_packages
from evocompress.testing.tiny import tiny_loaded, tiny_resnet

CONFIG = HealConfig(steps=3, batch=4, accumulate=1, learning_rate=3e-3, weight_decay=0.1)


def padded(family: str, folder: Path, *, bias: bool = False) -> tuple[LoadedModel, Path]:
    """Block 0 lacks its attention, block 1 its MLP, and the other sub-layers are narrow."""
    teacher = tiny_loaded(family)
    levels = {
        "0.attention": DROP,
        "0.mlp": Level(channels=100, bias=bias),
        "1.attention": Level(kv_groups=1, group_heads=1, bias=bias),
        "1.mlp": DROP,
    }
    candidate = candidate_of(teacher, levels)
    return teacher, materialize(teacher, PlainLibrary(teacher), candidate, folder, format="padded")


@pytest.mark.parametrize(("family", "bias"), [("opt", False), ("gpt2", False), ("llama", True)])
def test_zero_biases_of_a_padded_student_stay_zero(
    family: str, bias: bool, train: Tensor, validation: Tensor, tmp_path: Path
) -> None:
    teacher, student = padded(family, tmp_path / "student", bias=bias)
    report = heal(student, teacher, train, validation, CONFIG, tmp_path / "heal")
    assert report.best_step > 0
    before = load_file(student / "model.safetensors")
    after = load_file(Path(report.checkpoint) / "model.safetensors")
    biases = [name for name in before if name.endswith("bias")]
    assert any(not before[name].any() for name in biases), "of dropped sub-layers"
    for name in biases:
        assert torch.equal(before[name] == 0, after[name] == 0), name
        assert not before[name].any() or not torch.equal(before[name], after[name]), name


def test_biases_of_filled_in_rows_are_masked_and_others_are_not(tmp_path: Path) -> None:
    teacher, path = padded("opt", tmp_path / "student")
    student = load_student(path, teacher)
    masks = zero_masks(student, teacher.family)
    prefix = teacher.family.layers_path
    assert masks[f"{prefix}.0.self_attn.out_proj.bias"].all()
    assert masks[f"{prefix}.1.fc2.bias"].all()
    assert masks[f"{prefix}.0.fc1.bias"].nonzero().flatten().tolist() == list(range(100, 128))
    assert f"{prefix}.0.fc2.bias" not in masks
    assert f"{prefix}.2.fc1.bias" not in masks


def test_a_single_zero_in_a_bias_may_be_trained(teacher: LoadedModel, tmp_path: Path) -> None:
    opt = tiny_loaded("opt")
    path = f"{opt.family.layers_path}.0.fc1"
    opt.model.get_parameter(f"{path}.bias")[3] = 0
    assert zero_masks(opt.model, opt.family) == {}


@pytest.mark.parametrize("layer_type", ["basic", "bottleneck"])
def test_a_bias_of_a_convolution_stays_zero_with_its_row(layer_type: str, tmp_path: Path) -> None:
    require_packages("resnet")
    teacher = tiny_resnet(layer_type)
    name = "resnet.encoder.stages.1.layers.1.mlp"
    candidate = Candidate(((name, Level(channels=3, bias=True)),))
    library = PlainLibrary(teacher)
    model = load_student(materialize(teacher, library, candidate, tmp_path / "student"), teacher)
    weight, bias = (model.get_parameter(f"{library.output(name)}.{p}") for p in ("weight", "bias"))
    with torch.no_grad():
        weight[0], bias[:2] = 0, 0
    mask = zero_masks(model, teacher.family)[f"{library.output(name)}.bias"]
    assert mask.tolist() == [True] + [False] * (len(bias) - 1)
