"""The part of `speed.py` that is about building a level library."""

from __future__ import annotations

import time

import torch
from common import Figure, PeakMemory
from library import plain_sparsegpt
from speed_setting import Setting
from torch import Tensor

from evocompress.config import LibraryConfig
from evocompress.criteria import CRITERIA, Statistics
from evocompress.library import build_library
from evocompress.library.dense import DenseModel
from evocompress.library.gram import collecting
from evocompress.library.hidden import HiddenStates
from evocompress.types import Level


def libraries(setting: Setting) -> dict[str, Figure]:
    """A build by the program, and one by a sweep a level."""
    space = setting.space(sparsity={"target": 0.5, "levels": setting.levels})
    wanted = {
        members[0].name: tuple(level for level in levels if not level.dense)
        for members, levels in zip(space.genes.members, space.genes.levels, strict=True)
    }
    tokens = setting.tokens(setting.library_sequences)
    with PeakMemory(interval=0.01) as memory:
        start = time.perf_counter()
        build_library(
            setting.loaded,
            wanted,
            tokens,
            "speed",
            LibraryConfig(),
            setting.folder / "library",
            batch=1,
        )
        ours = time.perf_counter() - start
    naive = PerLevel(setting, wanted, tokens)
    naive.build()
    weights = sum(parameter.nbytes for parameter in setting.loaded.model.parameters())
    hessians = naive.hessian_bytes
    return {
        "library_seconds": ours,
        "library_per_level_seconds": naive.seconds,
        "library_vs_per_level": naive.seconds / ours,
        "sweeps_per_level_seconds": naive.sweeping,
        "sweeps_seconds": naive.ours,
        "sweeps_vs_per_level": naive.sweeping / naive.ours,
        "library_peak_mib": memory.mib,
        "library_peak_of_model": (memory.mib * 2**20 - hessians) / weights,
    }


class PerLevel:
    """A library as EvoPress's released code makes it (2410.14649): a SparseGPT sweep a level.

    Hessians are summed in float32, once for each matrix; every level of it begins with its own
    factorisation. Nothing is written. Beside each matrix the program's sweep over all levels is
    timed on the same Hessian.

    Attributes:
        seconds: Of the build without that.
        sweeping: Of these, factorisations and sweeps.
        ours: The program's factorisations and sweeps.
        hessian_bytes: Of one block.
    """

    def __init__(
        self, setting: Setting, wanted: dict[str, tuple[Level, ...]], tokens: Tensor
    ) -> None:
        self._loaded = setting.loaded
        self._wanted = wanted
        self._tokens = tokens
        self._dense = DenseModel(setting.loaded)
        self.seconds = self.sweeping = self.ours = 0.0
        self.hessian_bytes = 0

    @torch.no_grad()
    def build(self) -> None:
        """Makes every level of every matrix and throws it away."""
        start = time.perf_counter()
        states = HiddenStates(self._loaded, self._tokens, 1)
        self.seconds += time.perf_counter() - start
        for index in range(len(self._loaded.family.blocks(self._loaded.model))):
            self._block(index, states)

    def _block(self, index: int, states: HiddenStates) -> None:
        linears = [one for one in self._dense.linears.values() if one.unit.block == index]
        modules = {one.name: self._loaded.model.get_submodule(one.name) for one in linears}
        needs = {name: frozenset({"gram"}) for name in modules}
        start = time.perf_counter()
        # EvoPress sums the Hessian of each matrix, also of those that read the same input.
        with collecting(modules, needs, self._tokens.shape[1]) as sums:
            states.run(index, keep=False)
        states.run(index, keep=True)
        self.seconds += time.perf_counter() - start
        grams = {name: totals["gram"] for name, totals in sums.items()}
        words = {one.input: grams[one.name] for one in linears}
        self.hessian_bytes = max(self.hessian_bytes, sum(g.nbytes for g in words.values()))
        known: dict[str, Statistics] = {}
        for one in linears:
            weight, gram = self._dense.weight(one.name), grams[one.name]
            start = time.perf_counter()
            for level in self._wanted[one.name]:
                plain_sparsegpt(weight, gram, len(self._tokens), level.zeros)
            spent = time.perf_counter() - start
            self.sweeping += spent
            self.seconds += spent
            start = time.perf_counter()
            shared = known.setdefault(
                one.input, Statistics(words[one.input], sequences=len(self._tokens))
            )
            CRITERIA["sparsegpt"].compress(weight, shared, self._wanted[one.name])
            self.ours += time.perf_counter() - start
