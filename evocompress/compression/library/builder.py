"""Making the missing blocks of a library in order, so that a killed build goes on where it stopped.

Hidden states of all calibration sequences are carried from block to block. With ``dense``
Hessians one pass through each block gives both the statistics of its matrices and the states
that enter the next one (as EvoPress, 2410.14649). With ``propagated`` ones the block is run
again compressed, and later blocks see what comes out (as SparseGPT, 2301.00774).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from evocompress.compression.criteria import Statistics, unseen
from evocompress.compression.library.block import BlockMaker
from evocompress.compression.library.dense import DenseModel, Linear, dense_model
from evocompress.compression.library.gram import COUNT, Sums, collecting
from evocompress.compression.library.hidden import HiddenStates
from evocompress.compression.library.manifest import BlockRecord, Manifest
from evocompress.compression.library.order import BlockOrder, block_orders
from evocompress.compression.library.propagate import compressed
from evocompress.compression.library.recipe import methods_of
from evocompress.core.progress import Told
from evocompress.core.types import Unit
from evocompress.core.units import users_of
from evocompress.models.gradients import summed_gradients
from evocompress.models.loading import LoadedModel

BuildProgress = Told
"""Called with (blocks done, blocks to do, text) before each block and at the end."""

MakeBlocks = Callable[
    [LoadedModel, Path, Manifest, Tensor, int, BuildProgress], Iterator[tuple[int, BlockRecord]]
]
"""Makes the missing blocks of a library from (model, folder, manifest, tokens, batch, progress).

Each block's index and record comes as soon as its file is there, in any order.
"""


def make_blocks(
    loaded: LoadedModel,
    path: Path,
    manifest: Manifest,
    tokens: Tensor,
    batch: int,
    progress: BuildProgress,
) -> Iterator[tuple[int, BlockRecord]]:
    """Makes the missing blocks in this process, one after the other."""
    blocks = range(len(loaded.family.blocks(loaded.model)) + 1)  # and what is outside of them
    yield from Builder(loaded, path, manifest, tokens, batch).build(blocks, progress)


def orders_of(dense: DenseModel, manifest: Manifest) -> dict[int, BlockOrder]:
    """The compressed weights to make of each block of a library."""
    return block_orders(dense, manifest.recipe.levels, methods_of(manifest.recipe))


def observes(orders: Mapping[int, BlockOrder]) -> bool:
    """Whether anything is observed at the inputs of the matrices."""
    return any(order.needs for order in orders.values())


class Builder:
    """Makes missing blocks of a library.

    Args:
        loaded: The dense model; it is as before when a method returns or raises.
        path: Folder of the library.
        manifest: Its recipe, and the blocks that are there.
        tokens: Calibration sequences (N, S).
        batch: Sequences that pass a block together.
        entering: As `HiddenStates` takes them, where the states do not enter the first block.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        path: Path,
        manifest: Manifest,
        tokens: Tensor,
        batch: int,
        entering: Sequence[Tensor] | None = None,
    ) -> None:
        self._loaded = loaded
        self._path = path
        self._manifest = manifest
        self._tokens = tokens
        self._batch = batch
        self._dense = dense_model(loaded)
        self._orders = orders_of(self._dense, manifest)
        self._users = users_of(self._dense.units.values())
        self._states = (
            HiddenStates(loaded, tokens, batch, entering) if observes(self._orders) else None
        )

    def build(
        self, blocks: Sequence[int], progress: BuildProgress, *, first: int = 0
    ) -> Iterator[tuple[int, BlockRecord]]:
        """Makes the missing ones of some blocks; states pass the others again, from `first` on.

        Each block's index and record comes as soon as its file is there.
        """
        todo = [index for index in self._manifest.missing if index in blocks]
        count = len(self._loaded.family.blocks(self._loaded.model))
        gradients = self._gradients(todo, progress)
        for index in range(first, max(todo, default=-1) + 1):
            if index in todo:
                what = f"block {index + 1} of {count}" if index < count else "embedding and head"
                progress(todo.index(index), len(todo), what)
                record = self._make_block(index, gradients)
                self._manifest = self._manifest.with_block(index, record)
                yield index, record
            if index < count and (index not in todo or self._manifest.recipe.propagated):
                self._advance(index)
        progress(len(todo), len(todo), "")

    def _gradients(self, todo: list[int], progress: BuildProgress) -> dict[str, Tensor]:
        """The loss's gradients, of all matrices (out, in) whose sub-layers need them."""
        linears = [
            linear
            for index in todo
            if self._orders[index].methods.gradients
            for coupled, _ in self._orders[index].widths
            for linear in coupled.matrices
        ]
        if not linears:
            return {}

        def batches() -> Iterator[Tensor]:
            for position, ids in enumerate(torch.split(self._tokens, self._batch)):
                done = f"sequence {position * self._batch + 1} of {len(self._tokens)}"
                progress(0, len(todo), f"gradients: {done}")
                yield ids

        model = self._loaded.model
        parameters = [model.get_parameter(f"{linear.name}.weight") for linear in linears]
        found = summed_gradients(self._loaded, parameters, batches())
        pairs = zip(linears, found, strict=True)
        return {linear.name: linear.oriented(gradient) for linear, gradient in pairs}

    def _make_block(self, index: int, gradients: Mapping[str, Tensor]) -> BlockRecord:
        order = self._orders[index]
        maker = BlockMaker(order, self._dense, self._statistics(index, order), gradients)
        return maker.write(self._path / f"block-{index:04d}.safetensors")

    def _statistics(self, index: int, order: BlockOrder) -> dict[str, Statistics]:
        """Statistics of each input of a block; dense states go on to the next block."""
        if self._states is None:
            return {}
        if index == len(self._loaded.family.blocks(self._loaded.model)):
            return self._of_head(self._states, order)
        readers = {
            word: self._loaded.model.get_submodule(linear.name)
            for word, linear in order.readers.items()
        }
        routed = {word for word, linear in order.readers.items() if linear.routed}
        length = self._loaded.length(self._tokens)
        needs: dict[str, Collection[str]] = dict(order.needs)
        needs |= {w: {*needs[w], COUNT} for w, one in order.readers.items() if one.unit.shares}
        last = max(self._users[index]) if needs != order.needs else index
        with collecting(readers, needs, length, routed) as sums:
            self._states.run(index, keep=not self._manifest.recipe.propagated, last=last)
        return {word: self._known(order.readers[word], totals) for word, totals in sums.items()}

    def _of_head(self, states: HiddenStates, order: BlockOrder) -> dict[str, Statistics]:
        """Statistics of what the head reads, without running it."""
        stand_ins = {word: nn.Identity() for word in order.needs}
        length = self._loaded.length(self._tokens)
        with collecting(stand_ins, order.needs, length) as sums:
            for final in states.final() if stand_ins else ():
                for module in stand_ins.values():
                    module(final)
        return {word: self._known(order.readers[word], totals) for word, totals in sums.items()}

    def _known(self, reader: Linear, totals: Sums) -> Statistics:
        """The statistics of an input; of an expert to which no token was sent, a stand-in."""
        if totals or not reader.routed:
            return self._summed(totals, reader.unit)
        logging.getLogger(__name__).warning(
            "no calibration token is sent to %s: it is compressed by its weights alone", reader.name
        )
        return unseen(reader.shape[1], self._dense.device, self._manifest.recipe.damping)

    def _summed(self, totals: Sums, reader: Unit) -> Statistics:
        count = totals.get(COUNT)
        architecture = self._loaded.family.architecture(self._loaded.model)
        runs = 1 if reader.kind == "outer" else architecture.runs[reader.block]
        whole = len(self._tokens) * (reader.positions or self._loaded.length(self._tokens)) * runs
        magnitudes = totals.get("magnitudes")
        return Statistics(
            gram=totals.get("gram"),
            squares=totals.get("squares"),
            sequences=len(self._tokens),
            tokens=whole if count is None else int(count),
            damping=self._manifest.recipe.damping,
            sums=totals.get("sums"),
            magnitudes=None if magnitudes is None else magnitudes.sqrt(),
        )

    def _advance(self, index: int) -> None:
        """Carry the states past a block, compressed where the library is propagated."""
        if self._states is not None:
            with compressed(self._loaded, index, self._path, self._manifest, self._dense):
                self._states.run(index, keep=True)
