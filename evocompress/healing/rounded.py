"""A weight of a coarser type that is trained through its rounding.

Its scales can be trained, its integers, or both (LSQ, 1902.08153). The forward pass sees what a
file gives back of it: scales and minima rounded to how they are stored, weights to their blocks'
grids. Gradients pass the rounding as if it was not there (1308.3432), but those of a weight beyond
the ends of its grid go to scale and minimum alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from evocompress.compression.quantization.gptq import Rounded
from evocompress.compression.quantization.grids import BlockGrid, as_stored, divisor, least_code
from evocompress.core.storage import StorageType

WEIGHT = "weight"
RANGE = "range"
MINIMUM = "minimum"


@dataclass(frozen=True, eq=False)
class RoundedWeight:
    """What of a matrix (out, in) is trained, and what is made of it.

    Its masters, in float32: ``weight`` (out, in) where the integers are trained; where the scales
    are, ``range`` (out, blocks), a scale times half the number of steps, so that an optimizer's
    steps move it as they move weights, and of types that have them ``minimum`` (out, blocks).

    Attributes:
        first: How it is stored at the beginning.
        kind: Its type, of equal steps.
        numbers: Type in which scales and minima are stored.
        weights: The integers are trained.
        scales: Scales and minima are trained.

    Examples:
        >>> from evocompress.core.storage import STORAGE
        >>> codes, scales = torch.tensor([[1, 9] * 16]), torch.tensor([[0.5]])
        >>> first = Rounded(codes, scales, -8 * scales)
        >>> one = RoundedWeight(first, STORAGE["q4_0"], torch.float16, weights=False, scales=True)
        >>> one.rounded({"range": torch.tensor([[8.0]])}).weight[0, :2]
        tensor([-7.,  1.])
    """

    first: Rounded
    kind: StorageType
    numbers: torch.dtype
    weights: bool
    scales: bool

    @property
    def names(self) -> tuple[str, ...]:
        """Of its masters."""
        minimum = (MINIMUM,) if self._affine else ()
        return ((WEIGHT,) if self.weights else ()) + ((RANGE, *minimum) if self.scales else ())

    def masters(self) -> dict[str, Tensor]:
        """What is trained as it is at the beginning."""
        every = {
            WEIGHT: self.first.weight,
            RANGE: self.first.scales * self._half,
            MINIMUM: self.first.minima.clone(),
        }
        return {name: every[name] for name in self.names}

    def rounded(self, masters: Mapping[str, Tensor]) -> Rounded:
        """What a file would hold of masters.

        Raises:
            LibraryError: A scale is beyond the numbers of its type.
        """
        scales, minima = self._numbers(masters)
        if not self.weights:
            return Rounded(self.first.codes, scales, minima)
        codes = self._grid(scales, minima).codes(self._blocks(masters[WEIGHT]))
        return Rounded(codes.to(torch.uint8).flatten(1), scales, minima)

    def summed(self, gradient: Tensor) -> dict[str, Tensor]:
        """What of the weight's gradient (out, in) is added up over a step, and over processes.

        Where only scales are trained it is as small as these.
        """
        if self.weights:
            return {WEIGHT: gradient}
        factors = self._blocks(self.first.codes) - self._zeros
        return self._of_numbers(self._blocks(gradient), factors)

    def gradients(
        self, sums: Mapping[str, Tensor], masters: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Those of masters, of what was summed up, which may be changed in place."""
        if not self.weights:
            return dict(sums)
        grid = self._grid(*self._numbers(masters))
        places = (self._blocks(masters[WEIGHT]) - grid.minimum) / grid.scale
        inside = (places >= grid.low) & (places <= grid.high)
        found = {}
        if self.scales:
            codes = places.round().clamp(grid.low, grid.high)
            factors = codes - torch.where(inside, places, self._zeros)
            found = self._of_numbers(self._blocks(sums[WEIGHT]), factors, ~inside)
        return found | {WEIGHT: sums[WEIGHT].mul_(inside.flatten(1))}

    def _of_numbers(
        self, gradient: Tensor, factors: Tensor, moved: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The gradients of ranges and minima.

        Args:
            gradient: Of the weights (out, blocks, block).
            factors: By how much they move with the scale.
            moved: Which of them move with the minimum; all by default.
        """
        found = {RANGE: (gradient * factors).sum(2) / self._half}
        if self._affine:
            found[MINIMUM] = (gradient if moved is None else gradient * moved).sum(2)
        return found

    def _numbers(self, masters: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Scales and minima (out, blocks) as they are stored."""
        if not self.scales:
            return self.first.scales, self.first.minima
        scales = as_stored(masters[RANGE] / self._half, self.numbers)
        if self._affine:
            return scales, as_stored(masters[MINIMUM], self.numbers)
        return scales, -scales * self._zeros[..., 0]

    @cached_property
    def _zeros(self) -> Tensor:
        """The integers of which weights are multiples of the scale (out, blocks, 1)."""
        first = self.first
        if self.kind.ranges == "zero point":
            return (-first.minima / divisor(first.scales)).round()[..., None]
        return torch.full_like(first.scales, 0 if self._affine else self._half)[..., None]

    def _grid(self, scales: Tensor, minima: Tensor) -> BlockGrid:
        low, high = least_code(self.kind), (1 << self.kind.bits) - 1
        return BlockGrid(divisor(scales)[..., None], minima[..., None], self._zeros, low, high)

    def _blocks(self, values: Tensor) -> Tensor:
        """(out, in) as (out, blocks, block)."""
        return values.reshape(*self.first.scales.shape, -1)

    @property
    def _affine(self) -> bool:
        return self.kind.ranges == "affine"

    @property
    def _half(self) -> int:
        """Half the number of steps."""
        return 1 << (self.kind.bits - 1)
