"""What of a student has a coarser type is not trained; all else is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from evocompress.compression.library import build_library
from evocompress.compression.library.store import Library
from evocompress.core.config import HealConfig, LibraryConfig
from evocompress.core.errors import ConfigError
from evocompress.core.types import DENSE, DROP, Candidate, Level
from evocompress.export import materialize
from evocompress.healing import heal
from evocompress.healing.student import load_student
from evocompress.healing.trained import prepare_training
from evocompress.models.loading import LoadedModel, load
from evocompress.testing.tiny import tiny_checkpoint

Made = tuple[LoadedModel, Library]

TYPES = ("q4_0", "q5_1", "w3g32", "w4g32z")


def config(**changes: Any) -> HealConfig:
    return HealConfig.model_validate(
        {"steps": 4, "evaluate_every": 2, "learning_rate": 1e-2} | changes
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    loaded = load(str(tiny_checkpoint(folder / "model", "llama")))
    tree = loaded.family.units(loaded.model)
    names = [unit.name for unit in tree if unit.kind == "matrix"]
    wanted = {name: (DENSE, *(Level(bits=kind) for kind in TYPES)) for name in names}
    wanted["model.layers.1.mlp"] = (DENSE, Level(channels=64))
    tokens = torch.randint(1, 250, (8, 32), generator=torch.Generator().manual_seed(0))
    settings = LibraryConfig(width_criterion="magnitude")
    return loaded, build_library(loaded, wanted, tokens, "t", settings, folder / "library", batch=4)


def candidate_of(loaded: LoadedModel, types: Sequence[str], *, drop: bool = True) -> Candidate:
    """These types in turn, a word without letters for none; block 0 lacks its attention."""
    names = [unit.name for unit in loaded.family.units(loaded.model) if unit.kind == "matrix"]
    levels = {n: Level(bits=types[i % len(types)]) for i, n in enumerate(names)}
    levels = {name: level for name, level in levels.items() if not level.dense}
    if drop:
        levels |= {"model.layers.0.attention": DROP, "model.layers.1.mlp": Level(channels=64)}
        levels = {n: lv for n, lv in levels.items() if "layers.0.self_attn" not in n}
    return Candidate(tuple(sorted(levels.items())))


def changed(before: Path, after: Path) -> set[str]:
    first, second = (load_file(folder / "model.safetensors") for folder in (before, after))
    return {name for name in first if not torch.equal(first[name], second[name])}


@pytest.mark.parametrize("form", ["hf", "folded", "padded"])
def test_what_has_a_type_stays_and_all_else_is_trained(
    form: str, made: Made, train: Tensor, validation: Tensor, tmp_path: Path
) -> None:
    loaded, library = made
    candidate = candidate_of(loaded, ["q4_0", "", "q5_1"])
    student = materialize(loaded, library, candidate, tmp_path / "student", format=form)
    report = heal(student, loaded, train, validation, config(), tmp_path / "healed")
    assert report.best_step > 0
    moved = changed(student, Path(report.checkpoint))
    weights = load_file(student / "model.safetensors")
    typed = {f"{name}.weight" for name, level in candidate.levels if level.bits}
    if form == "folded":  # block 0 is the MLP before the first layer with an attention
        typed = {
            n.replace("layers.0.mlp", "layers.0.before.0.mlp")
            .replace("layers.1.", "layers.0.")
            .replace("layers.2.", "layers.1.")
            for n in typed
        }
    assert typed < weights.keys()
    filled = {name for name, weight in weights.items() if not weight.any()}
    if form == "padded":  # block 0 has a norm before an attention of zeros
        filled.add("model.layers.0.input_layernorm.weight")
    assert moved == weights.keys() - typed - filled
    assert {name for name in moved if "proj" in name}


def test_a_recipe_that_leaves_nothing_is_refused(
    made: Made, train: Tensor, validation: Tensor, tmp_path: Path
) -> None:
    loaded, library = made
    candidate = candidate_of(loaded, ["q4_0"], drop=False)
    student = materialize(loaded, library, candidate, tmp_path / "student")
    with pytest.raises(ConfigError, match="adapters are merged into matrices"):
        heal(student, loaded, train, validation, config(train="lora"), tmp_path / "healed")
    with pytest.raises(ConfigError, match="heal.train=head: all that it names has a coarser type"):
        prepare_training(
            load_student(student, loaded),
            loaded.family,
            config(train="head"),
            ["model.embed_tokens.weight"],
        )
