"""A candidate becomes the live model, and the model becomes dense again, by pointer swaps."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

from torch import Tensor, nn

from evocompress.errors import LibraryError
from evocompress.families import SubLayerName
from evocompress.library.store import Library
from evocompress.models import LoadedModel
from evocompress.types import DENSE, Candidate, Level, Unit


class LiveModel:
    """A model that takes the form of any candidate, in place and reversibly.

    Matrices are swapped by pointer for the library's tensors (copied to the device where that
    is not the CPU); dropped sub-layers are replaced by modules that add nothing. Only what
    differs from the current candidate is touched. A failed `apply` changes nothing.

    Args:
        loaded: The model, dense.
        library: Where compressed weights come from; ``None`` if candidates only drop.

    Example:
        >>> with LiveModel(loaded, library) as live:
        ...     live.apply(candidate)
        ...     loaded.model(ids)
    """

    def __init__(self, loaded: LoadedModel, library: Library | None = None) -> None:
        self.loaded = loaded
        self.library = library
        self._current = Candidate()
        self._units = {unit.name: unit for unit in loaded.family.units(loaded.model)}
        # Parameters are looked up while all modules are in place: a dropped one cannot be found.
        self._parameters = {
            name: loaded.model.get_parameter(f"{name}.weight")
            for name, unit in self._units.items()
            if unit.kind == "matrix"
        }
        self._dense = {name: parameter.data for name, parameter in self._parameters.items()}
        self._blocks = list(loaded.family.blocks(loaded.model))
        self._removed: dict[str, dict[str, nn.Module]] = {}

    @property
    def current(self) -> Candidate:
        """The candidate that the model is now."""
        return self._current

    def apply(self, candidate: Candidate) -> None:
        """Make the model the candidate.

        Raises:
            LibraryError: The model has no such unit, or the library no such level.
        """
        before, after = self._current.by_name, candidate.by_name
        changes = {
            name: after.get(name, DENSE)
            for name in before.keys() | after.keys()
            if before.get(name) != after.get(name)
        }
        weights = self._weights(changes)
        for name, tensor in weights.items():
            self._parameters[name].data = tensor
        for name, level in changes.items():
            if name not in weights:
                self._set_dropped(self._units[name], level.drop)
        self._current = candidate

    def restore(self) -> None:
        """Make the model dense again, with the very tensors and modules it had."""
        self.apply(Candidate())

    def __enter__(self) -> LiveModel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.restore()

    def _weights(self, changes: Mapping[str, Level]) -> dict[str, Tensor]:
        """The new tensors of the matrices that change; raises before anything is swapped."""
        weights: dict[str, Tensor] = {}
        for name, level in changes.items():
            if name not in self._units:
                raise LibraryError(f"the model has no unit {name}: the candidate is of another one")
            if self._units[name].kind == "matrix":
                weights[name] = self._weight(name, level)
            elif self._units[name].kind == "block":
                raise LibraryError(f"{name} is a block: a candidate drops its two sub-layers")
            elif not (level.drop or level.dense):
                raise LibraryError(f"{name} can only be dropped or dense, not {level.key}")
        return weights

    def _weight(self, name: str, level: Level) -> Tensor:
        if level.dense:
            return self._dense[name]
        if self.library is None:
            raise LibraryError(f"{name} at {level.key} needs a level library: give one")
        stored = self.library.load(name, level)["weight"]
        return stored.to(self._parameters[name].device, non_blocking=True)

    def _set_dropped(self, unit: Unit, drop: bool) -> None:
        """Put a sub-layer's replacements in, or the modules they stand for back."""
        block = self._blocks[unit.block]
        if drop:
            modules = self.loaded.family.replacements(block, _sublayer(unit))
            self._removed[unit.name] = {path: block.get_submodule(path) for path in modules}
        else:
            modules = self._removed.pop(unit.name)
        for path, module in modules.items():
            block.set_submodule(path, module)


def _sublayer(unit: Unit) -> SubLayerName:
    return "attention" if unit.kind == "attention" else "mlp"
