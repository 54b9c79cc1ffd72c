"""What library tests start from: a tiny model, its levels and tokens."""

import torch

from evocompress.config import LibraryConfig
from evocompress.library import build_library
from evocompress.testing.tiny import tiny_loaded
from evocompress.types import DENSE, Level

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


class Setting:
    """A tiny model with what a library of it is made from."""

    def __init__(self, model_type="llama", **config):
        self.loaded = tiny_loaded(model_type)
        self.wanted = wanted_for(self.loaded)
        self.tokens = tokens_for()
        self.config = LibraryConfig(**config)

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
