"""The one pruning backend: the tensors of compressed matrices, for live models and checkpoints.

What belongs together is cut together: with a head go its rows of the query, key and value
matrices and biases, with a channel its rows of the MLP's first matrices. Which of them stay,
and what the matrix that reads them becomes, the level library has decided.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from torch import Tensor

from evocompress.core.cache import Cache
from evocompress.core.errors import LibraryError
from evocompress.core.types import DENSE, Axis, Level
from evocompress.core.widths import Widths
from evocompress.models.device_copy import to_device
from evocompress.models.families import Matrix, SubLayerName
from evocompress.models.families.coupling import Kept, index_of
from evocompress.models.loading import LoadedModel

WEIGHT_AND_BIAS = ("weight", "bias")

Followers = Mapping[str, Mapping[str, tuple[Axis, Tensor]]]
"""{unit of a sub-layer: {name of a tensor: whose heads or channels it has values for, the tensor}};
see `evocompress.models.families.coupling.Follower`."""


class LevelStore(Protocol):
    """Compressed tensors by unit and level: an `evocompress.compression.library.store.Library`."""

    def load(self, unit: str, level: Level, width: Level = ...) -> dict[str, Tensor]:
        """The tensors of a unit at a level, in a sub-layer of a width."""


@dataclass(frozen=True)
class Form:
    """What becomes of one matrix.

    Attributes:
        level: Its own level: sparsity.
        width: The level of its sub-layer: dense or narrow.
        merge: How many of the next blocks are merged into its block.
    """

    level: Level = DENSE
    width: Level = DENSE
    merge: int = 0


def form_of(block: str, matrix: Matrix, levels: Mapping[str, Level]) -> Form:
    """The form of a matrix of a block, by path; dense where its sub-layer or expert is dropped."""
    width = levels.get(f"{block}.{matrix.sublayer}", DENSE)
    if width.drop or levels.get(f"{block}.{matrix.owner}", DENSE).drop:
        return Form()
    own = levels.get(f"{block}.{matrix.path}", DENSE)
    return Form(own, DENSE if matrix.fixed else width, levels.get(block, DENSE).merge)


@dataclass(frozen=True, eq=False)
class WeightSource:
    """Where the tensors of a compressed model come from.

    Attributes:
        loaded: The model; only its family and config are used, so it may be in any state.
        dense: The dense tensors of its matrices and their biases, by parameter name.
        library: The compressed ones; ``None`` where nothing is sparse or narrow.
        followers: The dense tensors, beside the matrices, that go with heads or channels.
        copies: Holds copies of the library's tensors on a device that is not the library's.
        cuts: Holds narrowed matrices, where there are no copies.
        stored: Those that were asked for and are no copies: backed by the library's files.
    """

    loaded: LoadedModel
    dense: Mapping[str, Tensor]
    library: LevelStore | None
    followers: Followers = field(default_factory=dict)
    copies: Cache | None = None
    cuts: Cache | None = None
    stored: dict[tuple[str, Level], Mapping[str, Tensor]] = field(default_factory=dict)

    def tensors(self, block: int, matrix: Matrix, form: Form) -> Mapping[str, Tensor]:
        """The weight and bias of a matrix in a form.

        They are in the module's own orientation and type, on the device of the dense tensors. A
        bias that the dense matrix does not have may be among them.

        Raises:
            LibraryError: There is no such level, or no library; or the matrix is merged and
                compressed as well.
        """
        name = self._name(block, matrix.path)
        if form.merge and form != Form(merge=form.merge):
            raise LibraryError(
                f"{name} is merged with those of the next blocks: it cannot be made sparse or "
                "narrow as well"
            )
        if form.merge:
            return self._merged(block, matrix, form.merge)
        if form.width.narrow:
            make = partial(self._narrow, block, matrix, form)
            held = self.cuts if self.copies is None else self.copies
            if held is None:
                return make()
            return held.get(f"{name} {form.level.key} {form.width.key}", make, _bytes)
        return self.whole(name, form)

    def whole(self, name: str, form: Form) -> Mapping[str, Tensor]:
        """The same of a matrix in a sub-layer of full width, or outside of the blocks, by name."""
        if form.level.dense:
            return self._own(name)
        return self.stored.get((name, form.level)) or self._sparse(name, form)

    def following(self, block: int, sublayer: SubLayerName, form: Form) -> dict[str, Tensor]:
        """The tensors that go with the heads or channels of a sub-layer, by name.

        Raises:
            LibraryError: There is no such level, or no library.
        """
        whole = self.followers.get(self._name(block, sublayer), {})
        found = {name: tensor for name, (_, tensor) in whole.items()}
        if not (whole and form.width.narrow):
            return found
        unit = self._name(block, sublayer)
        cut = self._store(unit, form).load(unit, form.width)
        kept, lengths = Kept(cut["groups"], cut["items"]), self.widths(block).lengths
        for name, (axis, tensor) in whole.items():
            index = index_of((axis,), kept, lengths, len(tensor))
            assert index is not None
            found[name] = tensor.index_select(0, to_device(index, tensor.device))
        return found

    def widths(self, block: int) -> Widths:
        """How wide the sub-layers of a block are in the dense model; 0 of one that it lacks."""
        family = self.loaded.family.at(block)
        heads, kv_heads, head_dim = family.heads(self.loaded.model.config, block)
        channels = 0
        if family.mlp.coupled:
            output = family.output("mlp")
            weight = self.dense.get(f"{self._name(block, output.path)}.weight")
            channels = 0 if weight is None else weight.shape[0 if output.transposed else 1]
        return Widths(heads, kv_heads, head_dim, channels)

    def _name(self, block: int, path: str) -> str:
        return f"{self.loaded.family.block_names[block]}.{path}"

    def _sparse(self, name: str, form: Form) -> Mapping[str, Tensor]:
        """A matrix with zeros in a sub-layer of full width, and its bias."""
        if self.copies is not None:
            # The library is not even asked for what was copied before: that takes longer than
            # giving all matrices to the model.
            def make() -> dict[str, Tensor]:
                return self._renamed(name, self._store(name, form).load(name, form.level))

            return self._own(name) | self.copies.get(f"{name} {form.level.key}", make, _bytes)
        entry = self._store(name, form).load(name, form.level)
        renamed = self._renamed(name, entry)
        tensors = self._own(name) | renamed
        if all(any(tensor is one for one in entry.values()) for tensor in renamed.values()):
            self.stored[name, form.level] = tensors
        return tensors

    def _own(self, name: str) -> dict[str, Tensor]:
        """The dense weight and, where there is one, bias of a matrix."""
        keys = [f"{name}.{part}" for part in WEIGHT_AND_BIAS]
        return {key: self.dense[key] for key in keys if key in self.dense}

    def _store(self, unit: str, form: Form) -> LevelStore:
        """The library, which `unit` needs for `form`."""
        if self.library is None:
            key = (form.level if form.level != DENSE else form.width).key
            raise LibraryError(f"{unit} at {key} needs a level library: give one")
        return self.library

    def _renamed(self, name: str, entry: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The library's weight and bias under the parameter names of matrix `name`."""
        like = self.dense[f"{name}.weight"]
        return {
            f"{name}.{part}": to_device(entry[part], like.device, like.dtype)
            for part in WEIGHT_AND_BIAS
            if part in entry
        }

    def _narrow(self, block: int, matrix: Matrix, form: Form) -> dict[str, Tensor]:
        """A matrix of a narrowed sub-layer: the output from the library, rows of the others."""
        name, unit = self._name(block, matrix.path), self._name(block, matrix.owner)
        library = self._store(unit, form)
        cut = library.load(unit, form.width)
        if matrix.part == "weight":
            tensors = self._own(name) | self._renamed(name, cut)
        else:
            tensors = self._own(name)
            if matrix.part:
                tensors |= self._renamed(name, {"weight": cut[matrix.part]})
            tensors = self._rows(block, matrix, Kept(cut["groups"], cut["items"]), tensors)
        if form.level.dense:
            return tensors
        return tensors | self._renamed(name, library.load(name, form.level, form.width))

    def _rows(
        self, block: int, matrix: Matrix, kept: Kept, tensors: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """The rows that stay of a matrix and its bias."""
        widths = self.widths(block)
        found = {}
        for key, tensor in tensors.items():
            dim = tensor.ndim - 1 if matrix.transposed else 0
            index = index_of(matrix.rows, kept, widths.lengths, tensor.shape[dim])
            if index is None:
                return tensors
            found[key] = tensor.index_select(dim, to_device(index, tensor.device))
        return found

    def _merged(self, block: int, matrix: Matrix, count: int) -> dict[str, Tensor]:
        """A matrix and its bias with those of the next blocks merged in."""
        if f"{self._name(block + count, matrix.path)}.weight" not in self.dense:
            raise LibraryError(
                f"{self._name(block, matrix.path)} cannot be merged with those of the next "
                f"{count} blocks: there are fewer"
            )
        names = [self._name(block + k, matrix.path) for k in range(count + 1)]
        return {
            f"{names[0]}.{part}": _merge([self.dense[f"{name}.{part}"] for name in names])
            for part in WEIGHT_AND_BIAS
            if f"{names[0]}.{part}" in self.dense
        }


def dense_followers(loaded: LoadedModel) -> Followers:
    """Those of a dense model."""
    found: dict[str, dict[str, tuple[Axis, Tensor]]] = {}
    for index, block in enumerate(loaded.family.blocks(loaded.model)):
        family, name = loaded.family.at(index), loaded.family.block_names[index]
        for sublayer, branch in (("attention", family.attention), ("mlp", family.mlp)):
            found[f"{name}.{sublayer}"] = {
                f"{name}.{path}": (follower.axis, tensor)
                for follower in branch.followers
                for path, tensor in follower.tensors(block).items()
            }
    return found


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _merge(tensors: Sequence[Tensor]) -> Tensor:
    """θ_0 + Σ_k (θ_k − θ_0) of tensors of one shape (LaCo, Yang et al., arXiv 2402.11187)."""
    first = tensors[0].float()
    return (first + sum(tensor.float() - first for tensor in tensors[1:])).to(tensors[0])
