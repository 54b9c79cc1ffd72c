"""What a healing trains: subsets of the weights, and adapters that are merged."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from evocompress.core.config import HealConfig
from evocompress.core.errors import ConfigError
from evocompress.healing import heal
from evocompress.healing.adapters import without_adapters
from evocompress.healing.student import load_student, write_student, zero_masks
from evocompress.healing.trained import prepare_training, trained_weights
from evocompress.models.loading import LoadedModel


def config(**changes: Any) -> HealConfig:
    return HealConfig.model_validate(
        {"steps": 4, "evaluate_every": 2, "learning_rate": 1e-2} | changes
    )


def changed(before: Path, after: Path) -> set[str]:
    """The tensors that differ between two checkpoints."""
    first, second = (load_file(folder / "model.safetensors") for folder in (before, after))
    assert first.keys() == second.keys()
    return {name for name in first if not torch.equal(first[name], second[name])}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("norms", lambda name: name.endswith("norm.weight")),
        ("head", lambda name: "embed_tokens" in name),
        ("last:1", lambda name: "layers.2." in name),
        ("norms,head", lambda name: name.endswith("norm.weight") or "embed_tokens" in name),
        ("lora", lambda name: "_proj" in name),
        ("lora,norms", lambda name: "_proj" in name or name.endswith("norm.weight")),
    ],
)
def test_only_what_is_named_changes(
    words: str,
    expected: Any,
    teacher: LoadedModel,
    student: Path,
    train: Tensor,
    validation: Tensor,
    tmp_path: Path,
) -> None:
    report = heal(student, teacher, train, validation, config(train=words), tmp_path / "healed")
    assert report.best_kl < report.initial_kl
    weights = load_file(student / "model.safetensors")
    moved = changed(student, tmp_path / "healed" / "checkpoint")
    assert moved == {name for name in weights if expected(name)}
    healed = load_file(tmp_path / "healed" / "checkpoint" / "model.safetensors")
    for name, weight in weights.items():
        if name.endswith("proj.weight"):
            assert torch.equal((healed[name] == 0) & (weight == 0), weight == 0), name


def test_adapters_are_merged_into_what_they_computed(teacher: LoadedModel, student: Path) -> None:
    """Against W + 2·mask∘(BA), written out."""
    model = load_student(student, teacher)
    weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    masks = zero_masks(model, teacher.family)
    prepare_training(model, teacher.family, config(train="lora", lora_rank=3))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) / 8
    merged = without_adapters(model)
    adapters = dict(model.named_parameters())
    found = dict(merged.named_parameters())
    assert found.keys() == weights.keys()
    for name, weight in weights.items():
        expected = weight
        first = f"{name.removesuffix('.weight')}.lora_A.default.weight"
        if first in adapters:
            update = adapters[first.replace("lora_A", "lora_B")] @ adapters[first] * 2
            expected = weight + update.masked_fill(masks.get(name, torch.tensor(False)), 0)
        torch.testing.assert_close(found[name], expected)
    tokens = torch.randint(1, 240, (2, 16), generator=generator)
    torch.testing.assert_close(merged(tokens).logits, model(tokens).logits)


def test_a_resumed_healing_of_adapters_ends_in_the_same_weights(
    teacher: LoadedModel, student: Path, train: Tensor, validation: Tensor, tmp_path: Path
) -> None:
    recipe = config(train="lora,norms")
    heal(student, teacher, train, validation, recipe, tmp_path / "whole")

    def stop(done: int, _: int, __: str) -> None:
        if done == 3:
            raise KeyboardInterrupt

    folder = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        heal(student, teacher, train, validation, recipe, folder, progress=stop)
    heal(student, teacher, train, validation, recipe, folder, resume=True)
    assert not changed(tmp_path / "whole" / "checkpoint", folder / "checkpoint")


def test_adapters_begin_without_an_effect(
    teacher: LoadedModel, student: Path, tmp_path: Path
) -> None:
    model = load_student(student, teacher)
    prepare_training(model, teacher.family, config(train="lora"))
    write_student(model, student, tmp_path / "again", "note")
    assert not changed(student, tmp_path / "again")


def test_what_is_not_there_is_named(
    teacher: LoadedModel, student: Path, train: Tensor, validation: Tensor, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"heal\.train=biases: .* has none: leave the word out"):
        heal(student, teacher, train, validation, config(train="biases"), tmp_path / "healed")
    with pytest.raises(ValidationError, match="pattern"):
        config(train="everything")
    assert config(train=["norms", "last:2"]) == config(train="norms,last:2")


def test_recomputed_blocks_give_the_same_weights(
    teacher: LoadedModel, student: Path, train: Tensor, validation: Tensor, tmp_path: Path
) -> None:
    for recompute in (False, True):
        recipe = config(checkpointing=recompute, states=0.5)
        heal(student, teacher, train, validation, recipe, tmp_path / str(recompute))
    assert not changed(tmp_path / "False" / "checkpoint", tmp_path / "True" / "checkpoint")


@pytest.mark.parametrize("words", ["all", "norms,head", "last:2", "lora,norms"])
def test_what_is_trained_is_counted(teacher: LoadedModel, student: Path, words: str) -> None:
    given = config(train=words, lora_rank=3)
    chosen, added = trained_weights(teacher.model, teacher.family, given)
    counted = sum(chosen) + added
    model = copy.deepcopy(teacher.model)
    prepare_training(model, teacher.family, given)
    assert counted == sum(p.numel() for p in model.parameters() if p.requires_grad)
