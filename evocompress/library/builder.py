"""Making the missing blocks of a library in order, so that a killed build goes on where it stopped.

Hidden states of all calibration sequences are carried from block to block. With ``dense``
Hessians one pass through each block gives both the statistics of its matrices and the states
that enter the next one (as EvoPress, 2410.14649). With ``propagated`` ones the block is run
again compressed, and later blocks see what comes out (as SparseGPT, 2301.00774).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from evocompress.criteria import Statistics
from evocompress.library.block import BlockMaker
from evocompress.library.dense import DenseModel
from evocompress.library.gradients import loss_gradients
from evocompress.library.gram import Sums, collecting
from evocompress.library.hidden import HiddenStates
from evocompress.library.manifest import Manifest
from evocompress.library.order import BlockOrder, block_orders, methods_named
from evocompress.library.propagate import compressed
from evocompress.models import LoadedModel

Progress = Callable[[float, float, str], None]
"""Called with (blocks done, blocks to do, text) before each block and at the end."""


class Builder:
    """Makes the missing blocks of a library.

    Args:
        loaded: The dense model; it is as before when `build` returns or raises.
        path: Folder of the library.
        manifest: Its recipe, and the blocks that are there.
        tokens: Calibration sequences (N, S).
        batch: Sequences that pass a block together.
    """

    def __init__(
        self, loaded: LoadedModel, path: Path, manifest: Manifest, tokens: Tensor, batch: int
    ) -> None:
        self._loaded = loaded
        self._path = path
        self._manifest = manifest
        self._tokens = tokens
        self._batch = batch
        self._dense = DenseModel(loaded)
        recipe = manifest.recipe
        methods = methods_named(
            recipe.criterion, recipe.width_criterion, recipe.reconstruct or False
        )
        self._orders = block_orders(self._dense, recipe.levels, methods)
        observed = any(order.needs for order in self._orders.values())
        self._states = HiddenStates(loaded, tokens, batch) if observed else None

    def build(self, progress: Progress) -> None:
        """Make what is missing; the states pass through finished blocks again."""
        self._manifest.write(self._path)
        todo = self._manifest.missing
        blocks = len(self._loaded.family.blocks(self._loaded.model))
        gradients = self._gradients(todo, progress)
        for index in range(max(todo, default=-1) + 1):
            if index in todo:
                progress(todo.index(index), len(todo), f"block {index + 1} of {blocks}")
                self._make_block(index, gradients)
            if index not in todo or self._manifest.recipe.propagated:
                self._advance(index)
        progress(len(todo), len(todo), "")

    def _gradients(self, todo: list[int], progress: Progress) -> dict[str, Tensor]:
        """The gradients of all matrices (out, in) whose sub-layers need them."""
        linears = [
            linear
            for index in todo
            if self._orders[index].methods.gradients
            for coupled, _ in self._orders[index].widths
            for linear in coupled.matrices
        ]
        if not linears:
            return {}
        found = loss_gradients(
            self._loaded,
            [linear.name for linear in linears],
            self._tokens,
            batch=self._batch,
            advance=lambda done: progress(
                0, len(todo), f"gradients: sequence {done + 1} of {len(self._tokens)}"
            ),
        )
        return {linear.name: linear.oriented(found[linear.name]) for linear in linears}

    def _make_block(self, index: int, gradients: Mapping[str, Tensor]) -> None:
        order = self._orders[index]
        maker = BlockMaker(order, self._dense, self._statistics(index, order), gradients)
        record = maker.write(self._path / f"block-{index:04d}.safetensors")
        self._manifest = self._manifest.with_block(index, record)
        self._manifest.write(self._path)

    def _statistics(self, index: int, order: BlockOrder) -> dict[str, Statistics]:
        """Statistics of each input of a block; dense states go on to the next block."""
        if self._states is None:
            return {}
        readers = {
            word: self._loaded.model.get_submodule(linear.name)
            for word, linear in order.readers.items()
        }
        with collecting(readers, order.needs, self._loaded.length(self._tokens)) as sums:
            self._states.run(index, keep=not self._manifest.recipe.propagated)
        return {word: self._summed(totals) for word, totals in sums.items()}

    def _summed(self, totals: Sums) -> Statistics:
        magnitudes = totals.get("magnitudes")
        return Statistics(
            gram=totals.get("gram"),
            squares=totals.get("squares"),
            sequences=len(self._tokens),
            tokens=len(self._tokens) * self._loaded.length(self._tokens),
            damping=self._manifest.recipe.damping,
            sums=totals.get("sums"),
            magnitudes=None if magnitudes is None else magnitudes.sqrt(),
        )

    def _advance(self, index: int) -> None:
        """Carry the states past a block, compressed where the library is propagated."""
        if self._states is not None:
            with compressed(self._loaded, index, self._path, self._manifest, self._dense):
                self._states.run(index, keep=True)
