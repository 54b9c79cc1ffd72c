"""What library tests start from: a tiny model, its levels and tokens, and its plain inputs."""

import torch

from evocompress.compression.criteria import STRUCTURED
from evocompress.compression.library import build_library
from evocompress.core.config import LibraryConfig
from evocompress.core.types import DENSE, Level
from evocompress.testing.tiny import tiny_loaded

CALIBRATION = "calibration"


def tokens_for(count=9, length=32, seed=0):
    return torch.randint(1, 256, (count, length), generator=torch.Generator().manual_seed(seed))


def matrix_units(loaded):
    return [unit for unit in loaded.family.units(loaded.model) if unit.kind == "matrix"]


def wanted_for(loaded, fractions=(0.3, 0.5, 0.8)):
    return {
        unit.name: [DENSE, *(Level(zeros=int(unit.numel * f)) for f in fractions)]
        for unit in matrix_units(loaded)
    }


def widths_for(loaded, criterion="obs_structured"):
    """Every number of groups and heads of a tiny model, and some numbers of channels."""
    family, shape = loaded.family, loaded.family.architecture(loaded.model)
    wanted = {}
    for unit in family.units(loaded.model):
        if unit.kind not in ("attention", "mlp"):
            continue
        output = loaded.model.get_submodule(f"{unit.parent}.{family.output(unit.kind).path}")
        bias = STRUCTURED[criterion].adds_bias and output.bias is None
        if unit.kind == "mlp":
            widths = [Level(channels=count, bias=bias) for count in (96, 40, 8)]
        else:
            groups, heads = shape.kv_heads[0], shape.heads[0]
            widths = [
                Level(kv_groups=g, group_heads=q, bias=bias)
                for g in range(groups, 0, -1)
                for q in range(heads // groups, 0, -1)
                if g * q < heads
            ]
        wanted[unit.name] = [DENSE, *widths]
    return wanted


def brute_force_inputs(model, tokens, unit):
    """Everything a matrix reads, (sequences, length, in), when the whole model runs plainly."""
    seen = []
    handle = model.get_submodule(unit).register_forward_hook(
        lambda module, arguments, output: seen.append(arguments[0].double())
    )
    with torch.no_grad():
        for ids in tokens:
            model(ids[None])
    handle.remove()
    return torch.stack(seen).view(*tokens.shape, -1)


def as_rows(module, weight):
    """A weight as (out, in), or such a one in the module's orientation."""
    return weight.T if type(module).__name__ == "Conv1D" else weight


class Setting:
    """A tiny model with what a library of it is made from."""

    def __init__(self, model_type="llama", *, widths=False, matrices=True, **config):
        self.loaded = tiny_loaded(model_type)
        self.config = LibraryConfig(**config)
        self.tokens = tokens_for()
        self.wanted = wanted_for(self.loaded) if matrices else {}
        if widths:
            self.wanted |= widths_for(self.loaded, self.config.width_criterion)

    def build(self, path, *, wanted=None, calibration=CALIBRATION, batch=2, **options):
        return build_library(
            self.loaded,
            self.wanted if wanted is None else wanted,
            self.tokens,
            calibration,
            self.config,
            path,
            batch=batch,
            **options,
        )


class Killed(BaseException):
    pass


def kill_at(position):
    def progress(done, total, text):
        if done == position:
            raise Killed

    return progress
