"""Candidates, a library and a way to apply them that shares no code with the export."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from evocompress.core.canonical import canonical
from evocompress.core.types import DENSE, DROP, Candidate, Level
from evocompress.export import materialize
from evocompress.models.loading import LoadedModel
from evocompress.testing.formats import heads, needing_bias
from evocompress.testing.plain_library import PlainLibrary


class ZeroingLibrary:
    """Zeroes the smallest weights; written independently of the real library."""

    fingerprint = "0123456789abcdef"

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def load(self, unit_name: str, level: Level, width: Level = DENSE) -> dict[str, Tensor]:
        weight = self.model.get_parameter(f"{unit_name}.weight").detach().clone()
        weight.view(-1)[weight.abs().view(-1).argsort()[: level.zeros]] = 0
        return {"weight": weight}


def mixed_candidate(loaded: LoadedModel, *, single_drops: bool = True) -> Candidate:
    """No attention in block 0, no MLP in block 2, no block 1, and zeros in what is left."""
    blocks = loaded.family.layers_path
    levels = {f"{blocks}.1.attention": DROP, f"{blocks}.1.mlp": DROP}
    if single_drops:
        levels |= {f"{blocks}.0.attention": DROP, f"{blocks}.2.mlp": DROP}
    units = loaded.family.units(loaded.model)
    zeros = {u.name: Level(zeros=u.numel // 2) for u in units if u.kind == "matrix"}
    return canonical(zeros | levels, units)


def applied(loaded: LoadedModel, library: ZeroingLibrary, candidate: Candidate) -> PreTrainedModel:
    """A copy of the dense model with the candidate put in, block by block."""
    model = copy.deepcopy(loaded.model)
    blocks = loaded.family.blocks(model)
    for name, level in candidate.levels:
        if not level.drop:
            model.get_parameter(f"{name}.weight").data = library.load(name, level)["weight"]
            continue
        block, sublayer = name.removeprefix(f"{loaded.family.layers_path}.").split(".")
        stand_ins = loaded.family.replacements(blocks[int(block)], sublayer)
        for path, stand_in in stand_ins.items():
            blocks[int(block)].set_submodule(path, stand_in)
    return model


def write(loaded: LoadedModel, candidate: Candidate, out: Path, format: str = "auto") -> Path:
    """The candidate as a checkpoint, with levels drawn at random."""
    return materialize(loaded, PlainLibrary(loaded), candidate, out, format=format)


def random_levels(loaded: LoadedModel, rng: np.random.Generator) -> dict[str, Level]:
    """Any width, drop, bias and number of zeros; the first attention is kept."""
    levels: dict[str, Level] = {}
    for unit in loaded.family.units(loaded.model):
        name = unit.name.removeprefix(f"{loaded.family.layers_path}.")
        if unit.kind == "attention":
            widths = [DENSE, needing_bias(loaded, heads(loaded)[rng.integers(len(heads(loaded)))])]
            levels[name] = [*widths, DROP][rng.integers(3 if unit.block else 2)]
        elif unit.kind == "mlp":
            width = needing_bias(loaded, Level(channels=int(rng.integers(1, 128))))
            levels[name] = [DENSE, width, DROP][rng.integers(3)]
        elif unit.kind == "matrix":
            levels[name] = Level(zeros=int(rng.integers(unit.numel)))
    return levels
