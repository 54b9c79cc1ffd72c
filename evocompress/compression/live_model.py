"""A candidate becomes the live model, and the model becomes dense again, by pointer swaps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from evocompress.compression.rounded_caches import RoundedCaches
from evocompress.compression.rounded_inputs import InputRounding
from evocompress.compression.weights import (
    Form,
    LevelStore,
    WeightSource,
    dense_followers,
    form_of,
)
from evocompress.core.cache import Cache
from evocompress.core.canonical import COSTED, MATRICES, too_few_experts
from evocompress.core.errors import LibraryError
from evocompress.core.storage import rounds_inputs
from evocompress.core.types import DENSE, Candidate, Level, Unit
from evocompress.core.widths import Widths
from evocompress.models.families import Matrix, SubLayerName
from evocompress.models.families.base import block_matrices
from evocompress.models.families.branches import Attributes
from evocompress.models.families.caches import CACHE, caching_modules
from evocompress.models.families.outer import every_unit
from evocompress.models.loading import LoadedModel

GPU_SHARE = 0.3
"""Of a GPU's free memory what copies of compressed matrices may take."""

CUT_BYTES = 256 * 2**20
"""Of main memory what narrowed matrices may take on a CPU: cutting one takes longer than a swap."""


class LiveModel:
    """A model that takes the form of any candidate, in place and reversibly.

    Matrices and biases are swapped by pointer for those of `evocompress.compression.weights`; a
    narrowed sub-layer is told its new number of heads or channels; a dropped one is replaced by
    modules that add nothing; the router of a mixture loses the rows of dropped experts; a matrix
    whose type rounds its inputs gets a hook that does, as an attention does whose cache is rounded.
    Only what differs from the current candidate is touched. A failed `apply` changes nothing.

    Args:
        loaded: The model, dense.
        library: Where compressed weights come from; ``None`` if candidates only drop or merge.

    Attributes:
        tree: The units of the model.
        units: The same by name.
        caches: What attentions cache.

    Examples:
        >>> from evocompress.testing.tiny import tiny_loaded
        >>> loaded, ids = tiny_loaded("llama"), torch.arange(8)[None]
        >>> dense = loaded.model(ids).logits
        >>> with LiveModel(loaded) as live:
        ...     live.apply(Candidate.from_json({"model.layers.1.mlp": {"drop": True}}))
        ...     bool((loaded.model(ids).logits == dense).all())
        False
        >>> bool((loaded.model(ids).logits == dense).all())
        True
    """

    def __init__(self, loaded: LoadedModel, library: LevelStore | None = None) -> None:
        self.loaded = loaded
        self.library = library
        self._current = Candidate()
        self.tree = every_unit(loaded.family, loaded.model)
        self.units = self.tree.by_name
        self._blocks = list(loaded.family.blocks(loaded.model))
        # Modules are looked up while all are in place: a dropped one cannot be found.
        caching = caching_modules(loaded.family, loaded.model)
        self.caches = RoundedCaches(
            {
                f"{unit}.{CACHE}": (path, loaded.model.get_submodule(path))
                for unit, path in caching.items()
                if f"{unit}.{CACHE}" in self.units
            }
        )
        self._modules = {
            name: loaded.model.get_submodule(name)
            for name, unit in self.units.items()
            if unit.kind in MATRICES
        }
        self._source = WeightSource(
            loaded,
            _tensors(self._modules),
            library,
            dense_followers(loaded),
            _copies(loaded),
            None if loaded.cache else Cache(CUT_BYTES),
        )
        self._keys = {name: (f"{name}.weight", f"{name}.bias") for name in self._modules}
        self._weights = {name: m.get_parameter("weight") for name, m in self._modules.items()}
        self._within = _matrices_within(loaded, self.units)
        self._followers = {
            name: (loaded.model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2])
            for tensors in self._source.followers.values()
            for name in tensors
        }
        self._removed: dict[str, dict[str, nn.Module]] = {}
        self._attributes: dict[str, Attributes] = {}
        self._rounding: dict[str, tuple[InputRounding, RemovableHandle]] = {}

    @property
    def current(self) -> Candidate:
        """The candidate that the model is now."""
        return self._current

    @property
    def dense(self) -> Mapping[str, Tensor]:
        """The dense tensors of the matrices and their biases, by parameter name."""
        return self._source.dense

    def input_rounding(self, name: str) -> InputRounding | None:
        """How the inputs of a matrix are rounded now, if they are."""
        return self._rounding[name][0] if name in self._rounding else None

    def widths(self, block: int) -> Widths:
        """How wide the sub-layers of a block are in the dense model."""
        return self._source.widths(block)

    @torch.inference_mode(False)
    def tensors(self, name: str, level: Level) -> Mapping[str, Tensor]:
        """The weight and bias of a matrix at a level, as `apply` gives them to the model.

        Raises:
            LibraryError: The library has no such level.
        """
        if self.units[name].kind == "outer":
            return self._source.whole(name, Form(level))
        ((index, _, matrix, _),) = self._within[name]
        return self._source.tensors(index, matrix, Form(level))

    @torch.inference_mode(False)
    def apply(self, candidate: Candidate) -> None:
        """Make the model the candidate, whose tensors can then be used in a backward pass.

        Raises:
            LibraryError: The model has no such unit, or the library no such level.
        """
        before, after = self._current.by_name, candidate.by_name
        changed = {name: level for name, level in after.items() if before.get(name) != level}
        changed |= {name: DENSE for name in before.keys() - after.keys()}
        for name, level in changed.items():
            self._check(name, level)
        experts = any(self.units[name].kind == "expert" for name in after)
        if experts and (short := too_few_experts(after, self.tree)):
            raise LibraryError(short)
        # Everything that can fail comes before the first change.
        tensors = self._changed_tensors(changed, after)
        following = self._changed_followers(changed)
        for name, parts in tensors.items():
            self._put(name, parts)
        for name, tensor in following.items():
            module, part = self._followers[name]
            getattr(module, part).data = tensor
        for name in changed.keys() & self._modules.keys():
            self._round_inputs(name, rounded=rounds_inputs(after.get(name, DENSE).bits))
        for name in (name for name in changed if self.units[name].kind == "cache"):
            self.caches.put(name, changed[name].cache)
        # A matrix changes nothing else; an expert reshapes its MLP.
        shaped = [unit for name in changed if (unit := self.units[name]).kind in COSTED]
        for sublayer in dict.fromkeys(map(self.tree.sublayer, shaped)):
            self._reshape(sublayer, after)
        self._current = candidate

    def restore(self) -> None:
        """Make the model dense again, with the very tensors, modules and attributes it had."""
        self.apply(Candidate())

    def __enter__(self) -> LiveModel:
        return self

    def __exit__(self, *error: object) -> None:
        self.restore()

    def _check(self, name: str, level: Level) -> None:
        """Refuse units that the model does not have, and levels that are of another kind."""
        if name not in self.units:
            raise LibraryError(f"the model has no unit {name}: the candidate is of another one")
        kind = self.units[name].kind
        if kind == "block" and not (level.dense or level.merge):
            raise LibraryError(
                f"{name} is a block: a candidate drops its two sub-layers or merges it"
            )
        width = {"attention": level.kv_groups, "mlp": level.channels}
        if (kind == "cache") != bool(level.cache) and not level.dense:
            raise LibraryError(f"{name} is of kind {kind}: it cannot be {level.key}")
        if kind == "expert" and not (level.dense or level.drop):
            raise LibraryError(f"{name} is an expert: it can only be dropped, not {level.key}")
        if kind in width and not (level.dense or level.drop or width[kind]):
            raise LibraryError(f"{name} can only be dropped, narrowed or dense, not {level.key}")

    def _changed_tensors(
        self, changed: Iterable[str], after: Mapping[str, Level]
    ) -> dict[str, Mapping[str, Tensor]]:
        """The new tensors of each matrix of the changed units; raises where there are none."""
        tensors: dict[str, Mapping[str, Tensor]] = {}
        for unit in changed:
            if self.units[unit].kind == "outer":
                tensors[unit] = self._source.whole(unit, Form(after.get(unit, DENSE)))
            for index, block, matrix, name in self._within[unit]:
                if name not in tensors:
                    form = form_of(block, matrix, after)
                    tensors[name] = self._source.tensors(index, matrix, form)
        return tensors

    def _changed_followers(self, changed: Mapping[str, Level]) -> dict[str, Tensor]:
        """The new tensors of what goes with changed heads or channels; raises without any."""
        found: dict[str, Tensor] = {}
        for name in changed.keys() & self._source.followers.keys():
            unit, sublayer = self.units[name], _sublayer(self.units[name])
            found |= self._source.following(unit.block, sublayer, Form(width=changed[name]))
        return found

    def _put(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Swap the weight and bias of a matrix; a bias it lacks when dense comes and goes."""
        module, (weight, bias) = self._modules[name], self._keys[name]
        self._weights[name].data = tensors[weight]
        if bias in self._source.dense:
            module.get_parameter("bias").data = tensors[bias]
            return
        new = tensors.get(bias)
        if new is not None or getattr(module, "bias", None) is not None:
            module.register_parameter(
                "bias", None if new is None else nn.Parameter(new, requires_grad=False)
            )

    def _round_inputs(self, name: str, *, rounded: bool) -> None:
        """Put the hook that rounds the inputs of a matrix, or take it away."""
        if name in self._rounding and not rounded:
            self._rounding.pop(name)[1].remove()
        elif rounded and name not in self._rounding:
            rounding = InputRounding()
            handle = self._modules[name].register_forward_pre_hook(rounding)
            self._rounding[name] = rounding, handle

    def _reshape(self, unit: Unit, levels: Mapping[str, Level]) -> None:
        """Give a sub-layer the modules and attributes of its level, from its dense ones on."""
        level = levels.get(unit.name, DENSE)
        block, family = self._blocks[unit.block], self.loaded.family.at(unit.block)
        sublayer = _sublayer(unit)
        _put_modules(block, self._removed.pop(unit.name, {}))
        put_attributes(block, self._attributes.pop(unit.name, {}))
        if level.drop:
            self._removed[unit.name] = _put_modules(block, family.replacements(block, sublayer))
            return
        attributes: Attributes = {}
        if level.narrow:
            widths = self._source.widths(unit.block).at(level)
            attributes |= family.narrowing(block, sublayer, widths)
        experts = self.tree.experts.get(unit.name, ())
        kept = [i for i, each in enumerate(experts) if not levels.get(each.name, DENSE).drop]
        if family.mixture and len(kept) < len(experts):
            attributes |= family.mixture.routing(block, kept)
        if attributes:
            self._attributes[unit.name] = put_attributes(block, attributes)


def _sublayer(unit: Unit) -> SubLayerName:
    return "attention" if unit.kind == "attention" else "mlp"


def _copies(loaded: LoadedModel) -> Cache | None:
    """Room on a GPU for levels that candidates have in common; ``None`` where none is needed."""
    device = loaded.model.device
    if device.type != "cuda" or loaded.cache is not None:
        return None
    return Cache(int(GPU_SHARE * torch.cuda.mem_get_info(device)[0]))


_Place = tuple[int, str, Matrix, str]
"""A matrix: index and name of its block, what its family says of it, and its own name."""


def _matrices_within(loaded: LoadedModel, units: Mapping[str, Unit]) -> dict[str, list[_Place]]:
    """For each unit the matrices that are in it, or that it is."""
    within: dict[str, list[_Place]] = {name: [] for name in units}
    for index, matrices in enumerate(block_matrices(loaded.family, loaded.model)):
        block = loaded.family.block_names[index]
        for matrix in matrices:
            name = f"{block}.{matrix.path}"
            if name not in units:
                continue
            sublayer, owner = f"{block}.{matrix.sublayer}", f"{block}.{matrix.owner}"
            for unit in dict.fromkeys((block, sublayer, owner, name)):
                within[unit].append((index, block, matrix, name))
    return within


def _tensors(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The tensors of modules now, by parameter name."""
    return {
        f"{name}.{part}": parameter.data
        for name, module in modules.items()
        for part, parameter in module.named_parameters()
    }


def _put_modules(block: nn.Module, modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Put modules at their paths in a block; returns those that were there."""
    former = {path: block.get_submodule(path) for path in modules}
    for path, module in modules.items():
        block.set_submodule(path, module)
    return former


def put_attributes(block: nn.Module, attributes: Attributes) -> Attributes:
    """Set attributes of the modules of a block; returns their former values."""
    former: Attributes = {}
    for (path, name), value in attributes.items():
        module = block.get_submodule(path)
        former[path, name] = getattr(module, name)
        setattr(module, name, value)
    return former
