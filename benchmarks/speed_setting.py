"""What the parts of `speed.py` share: a model, a sparsity space with its library, and tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from evocompress.compression.library import Library, build_library
from evocompress.core.config import LibraryConfig, SpaceConfig
from evocompress.models.cpu_dtypes import slow_on_cpu
from evocompress.models.dummy_inputs import random_batch
from evocompress.models.loading import LoadedModel, device_named, load
from evocompress.models.tasks import CAUSAL
from evocompress.space.build import build_space
from evocompress.space.space import SearchSpace
from evocompress.testing.tiny import tiny_loaded

TINY = "tiny"


@dataclass(frozen=True)
class Setting:
    """Where and what is measured.

    Attributes:
        folder: For libraries and weight files.
        source: The model.
        length: Tokens of a sequence.
        repeats: Turns of each comparison.
        generation: Mutations of a generation.
        library_sequences: Calibration sequences of the library that is timed.
        levels: Levels up and down of its matrices.
    """

    folder: Path
    source: str
    length: int
    repeats: int
    generation: int
    library_sequences: int
    levels: int

    def load(self, dtype: str = "auto") -> LoadedModel:
        """The model."""
        if self.source == TINY:
            kind = torch.float32 if dtype == "auto" else getattr(torch, dtype)
            found = tiny_loaded(layers=6, vocabulary=4096, dtype=kind)
            torch.nn.Module.to(found.model, device_named("auto"))
            return found
        return load(self.source, dtype=dtype)  # type: ignore[arg-type]

    @cached_property
    def loaded(self) -> LoadedModel:
        """The model in the dtype of a run."""
        return self.load()

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Those that this machine multiplies in hardware."""
        slow = device_named("auto").type == "cpu" and slow_on_cpu(torch.bfloat16)
        return ("float32",) if slow else ("float32", "bfloat16")

    def space(self, **config: object) -> SearchSpace:
        """A search space of the model."""
        family, model = self.loaded.family, self.loaded.model
        settings = SpaceConfig.model_validate(config)
        return build_space(tuple(family.units(model)), family.architecture(model), settings)

    @cached_property
    def sparsity(self) -> SearchSpace:
        """50% sparsity, a few levels up and down."""
        return self.space(sparsity={"target": 0.5, "levels": 2})

    @cached_property
    def library(self) -> Library:
        """Its levels, by magnitude: quickly made, and as large as any."""
        genes = self.sparsity.encoding
        wanted = {
            members[0].name: tuple(level for level in levels if not level.dense)
            for members, levels in zip(genes.members, genes.levels, strict=True)
        }
        config = LibraryConfig(criterion="magnitude")
        path = self.folder / "levels"
        return build_library(self.loaded, wanted, self.tokens(1), "none", config, path, batch=1)

    def tokens(self, sequences: int) -> Tensor:
        """Random tokens, where the model is: what they are does not matter to the time."""
        return random_batch(CAUSAL, self.loaded.model, sequences, self.length)


def full(folder: Path, repeats: int) -> Setting:
    """SmolLM2-135M."""
    return Setting(folder, "demo:smollm2-135m", 512, repeats, 32, 128, 6)


def quick(folder: Path, repeats: int) -> Setting:
    """A tiny model."""
    return Setting(folder, TINY, 32, min(repeats, 2), 8, 4, 2)
