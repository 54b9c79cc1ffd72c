"""A block at the levels that later blocks see, while their statistics are collected."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedModel

from evocompress.compression.library.dense import Coupled, DenseModel, Linear
from evocompress.compression.library.manifest import Manifest
from evocompress.compression.library.narrowed import padded
from evocompress.compression.library.store import Library
from evocompress.core.types import DENSE, Level
from evocompress.models.families.coupling import Kept
from evocompress.models.loading import LoadedModel


@contextmanager
def compressed(
    loaded: LoadedModel, index: int, path: Path, manifest: Manifest, dense: DenseModel
) -> Iterator[None]:
    """The model with the block of an index at its propagated levels; dense again afterwards.

    A narrowed sub-layer keeps its size: the output matrix has zeros for what is gone.
    """
    levels = _Propagated(Library(path, manifest, dense, cache_mib=0), dense)
    with ExitStack() as undo:
        for coupled in dense.coupled.values():
            if coupled.unit.block == index:
                _compress(loaded.model, levels, coupled, undo)
        yield


def _compress(
    model: PreTrainedModel, levels: _Propagated, coupled: Coupled, undo: ExitStack
) -> None:
    """Put a sub-layer's weights in, until `undo` puts the dense ones back."""
    for linear in coupled.matrices:
        weight = levels.weight(coupled, linear)
        if weight is not None:
            parameter = model.get_parameter(f"{linear.name}.weight")
            _swap(parameter, linear.oriented(weight), undo)
        bias = levels.bias(coupled, linear)
        if bias is not None and linear.unit.bias:
            _swap(model.get_parameter(f"{linear.name}.bias"), bias, undo)
        elif bias is not None:
            _add(model.get_submodule(linear.name), bias.to(model.device), undo)


def _add(module: nn.Module, bias: Tensor, undo: ExitStack) -> None:
    undo.callback(module.register_forward_hook(lambda _, __, given: given + bias).remove)


def _swap(parameter: nn.Parameter, data: Tensor, undo: ExitStack) -> None:
    undo.callback(setattr, parameter, "data", parameter.data)
    parameter.data = data.to(parameter.device, parameter.dtype).contiguous()


class _Propagated:
    """The propagated levels of a library, at the full size of the dense model."""

    def __init__(self, library: Library, dense: DenseModel) -> None:
        self._library = library
        self._dense = dense
        self._levels = library.manifest.recipe.propagated

    def weight(self, coupled: Coupled, linear: Linear) -> Tensor | None:
        """A matrix (out, in); ``None`` where it does not differ from the dense one."""
        width, level = self._of(coupled.unit.name), self._of(linear.name)
        if width.dense:
            return None if level.dense else self._loaded(linear, level, width)
        narrowed = self._library.load(coupled.unit.name, width)
        kept = Kept(narrowed["groups"], narrowed["items"])
        if not level.dense:
            weight = self._loaded(linear, level, width)
        elif linear.part:
            weight = linear.oriented(narrowed[linear.part])
            weight = weight if linear.part == "weight" else weight[coupled.index(linear, kept)[0]]
        else:
            return None
        return padded(coupled, linear, self._dense.weight(linear.name), weight, kept)

    def bias(self, coupled: Coupled, linear: Linear) -> Tensor | None:
        """The bias of a matrix, also one that it does not have when dense; ``None`` as before."""
        width, level = self._of(coupled.unit.name), self._of(linear.name)
        found = None if level.dense else self._library.load(linear.name, level, width).get("bias")
        if width.dense:
            return found
        narrowed = self._library.load(coupled.unit.name, width)
        if linear.part == "weight":
            return narrowed.get("bias") if found is None else found
        own = self._dense.bias(linear.name)
        if found is None or own is None:
            return None
        rows, _ = coupled.index(linear, Kept(narrowed["groups"], narrowed["items"]))
        return own.index_copy(0, rows, found.to(own)) if isinstance(rows, Tensor) else found

    def _of(self, unit: str) -> Level:
        return self._levels.get(unit, DENSE)

    def _loaded(self, linear: Linear, level: Level, width: Level) -> Tensor:
        return linear.oriented(self._library.load(linear.name, level, width)["weight"])
