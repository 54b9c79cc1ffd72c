"""Matrices of narrowed sub-layers with zeros or of a coarser type, made when first needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from evocompress.compression.criteria import Statistics
from evocompress.compression.criteria.base import mean_change
from evocompress.compression.library.dense import Coupled, DenseModel, Linear
from evocompress.compression.library.manifest import Manifest
from evocompress.compression.library.matrix_levels import make_levels
from evocompress.compression.library.order import statistics_key
from evocompress.compression.library.reader import BlockReader
from evocompress.compression.library.recipe import methods_of
from evocompress.compression.quantization.quantized import QuantizedMatrix
from evocompress.core.cache import Cache
from evocompress.core.types import Level
from evocompress.models.families.coupling import Kept

Indexer = Tensor | slice


class NarrowedMatrices:
    """Gives zeros and coarser types to matrices of narrowed sub-layers.

    The weights are those of the width: rows of the dense matrix, or the output matrix as the
    structured criterion left it. The Hessian of an output matrix is restricted to the inputs
    that are left; the others keep all inputs.

    Results and factored Hessians are kept for later, up to `limit` bytes.
    """

    def __init__(
        self, manifest: Manifest, dense: DenseModel, reader: BlockReader, limit: int
    ) -> None:
        self._manifest = manifest
        self._dense = dense
        self._reader = reader
        self._methods = methods_of(manifest.recipe)
        self.cache = Cache(limit)

    def tensors(self, unit: str, level: Level, width: Level) -> dict[str, Tensor]:
        """A matrix at a level in its sub-layer at a narrow width, and its bias where it changes.

        They have the module's orientation and the model's type, and lie in main memory.

        Raises:
            LibraryError: The level is impossible at this width, or the file is damaged.
        """
        key = f"{unit}::{width.key}::{level.key}"
        return self.cache.get(
            key,
            lambda: self._made(self._dense.linears[unit], level, width)[0],
            lambda made: sum(tensor.nbytes for tensor in made.values()),
        )

    def parts(self, unit: str, level: Level, width: Level) -> dict[str, Tensor]:
        """What a file holds of the same, where its level has a coarser type."""
        _, stored = self._made(self._dense.linears[unit], level, width)
        return {} if stored is None else stored.parts

    def _made(
        self, linear: Linear, level: Level, width: Level
    ) -> tuple[dict[str, Tensor], QuantizedMatrix | None]:
        methods = self._methods
        coupled = self._dense.coupled[linear.unit.owner]
        stored = self._reader.level(coupled.unit.name, width)
        rows, columns = coupled.index(linear, Kept(stored["groups"], stored["items"]))
        dense = self._dense.weight(linear.name)
        if linear.part:
            narrow = linear.oriented(stored[linear.part]).to(dense.device).float()
        else:
            narrow = dense
        if linear.part != "weight":
            narrow = narrow[rows]
        zeros = level.zeros_left(dense.numel(), narrow.numel())
        known = self._statistics(linear, columns, width if linear.unit.columns else None)
        left = replace(level, zeros=zeros)
        ways = (methods.criterion, methods.rounding, self._dense.stored)
        (((found,),)) = make_levels([narrow], known, [[left]], *ways)
        made = {"weight": linear.oriented(found.weight)}
        compensates = methods.criterion is not None and methods.criterion.compensates
        bias = self._bias(linear, stored, rows) if compensates else None
        if bias is not None:
            made["bias"] = bias + mean_change(narrow, found.weight, known)
        weights = {k: v.to("cpu", self._dense.dtype).contiguous() for k, v in made.items()}
        return weights, found.stored

    def _bias(self, linear: Linear, stored: Mapping[str, Tensor], rows: Indexer) -> Tensor | None:
        """The bias of a narrowed matrix: the output's as the width left it, rows of another."""
        if linear.part == "weight":
            bias = stored.get("bias")
            return None if bias is None else bias.to(self._dense.device).float()
        own = self._dense.bias(linear.name)
        return None if own is None else own[rows]

    def _statistics(self, linear: Linear, columns: Indexer, width: Level | None) -> Statistics:
        """Statistics of the inputs that are left; matrices that read the same share them."""
        key = f"{linear.unit.block}::{linear.input}::{width.key if width else 'all'}"
        return self.cache.get(key, lambda: self._restricted(linear, columns), _bytes)

    def _restricted(self, linear: Linear, columns: Indexer) -> Statistics:
        recipe, block = self._manifest.recipe, linear.unit.block
        known = Statistics(
            sequences=self._manifest.sequences,
            tokens=self._manifest.tokens,
            damping=recipe.damping,
        )
        needs = self._methods.matrix_needs

        def stored(need: str) -> Tensor:
            found = self._reader.tensor(block, statistics_key(linear.input, need))
            return found.to(self._dense.device)[columns]

        if "sums" in needs:
            known = replace(known, sums=stored("sums"))
        if "squares" in needs:
            known = replace(known, squares=stored("squares"))
        if "gram" in needs:
            known = replace(known, gram=stored("gram")[:, columns])
        return known


def padded(coupled: Coupled, linear: Linear, dense: Tensor, narrow: Tensor, kept: Kept) -> Tensor:
    """A narrowed matrix (out, in) at full size, so that the dense block computes the same.

    Inputs of the output matrix that are gone weigh nothing; the outputs of the others that are
    gone are as in the dense matrix, and not read.
    """
    result = torch.zeros_like(dense) if linear.unit.columns else dense.clone()
    rows, columns = coupled.index(linear, kept)
    if isinstance(rows, Tensor) and isinstance(columns, Tensor):
        rows = rows[:, None]
    result[rows, columns] = narrow.to(result)
    return result


def _bytes(known: Statistics) -> int:
    """Of statistics with the factor that is made from a Gram matrix."""
    tensors = (known.gram, known.gram, known.squares)
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
