"""The weights of a compressed model, gathered without touching the dense model."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    PrefixChange,
    WeightConverter,
    WeightRenaming,
    rename_source_key,
)

from evocompress.compression.weights import (
    Form,
    LevelStore,
    WeightSource,
    dense_followers,
    form_of,
)
from evocompress.core.types import DENSE, Candidate, Level
from evocompress.export.layout import Block, layout
from evocompress.models.families import Family
from evocompress.models.families.base import block_matrices
from evocompress.models.families.mixture import ExpertViews, fused, held_in
from evocompress.models.families.names import BlockNames
from evocompress.models.families.outer import every_unit, other_names
from evocompress.models.loading import LoadedModel
from evocompress.models.modeling.layers import projections
from evocompress.models.stored_tensors import without_missing

StateDict = Mapping[str, Tensor]
"""The tensors of a compressed model by the names of the dense one."""


class LevelWeights(LevelStore, Protocol):
    """What a checkpoint needs of a level library."""

    @property
    def fingerprint(self) -> str:
        """Identifies the library's contents."""
        ...

    def parts(self, unit: str, level: Level, width: Level = ...) -> dict[str, Tensor]:
        """What a file holds of a matrix of a coarser type, in a sub-layer of a width."""
        ...


def compressed_state(
    loaded: LoadedModel, library: LevelWeights | None, candidate: Candidate
) -> dict[str, Tensor]:
    """The dense model's state with the candidate's matrices and biases in place.

    The tensors may be the model's and the library's own, not copies: only read them. Those of
    dropped sub-layers are there as well, and dense.

    Raises:
        LibraryError: The candidate needs a level that the library lacks, or there is none.
    """
    state: dict[str, Tensor] = dict(loaded.model.state_dict())
    source = WeightSource(loaded, dict(state), library, dense_followers(loaded))
    names, levels = loaded.family.block_names, candidate.by_name
    for index, matrices in enumerate(block_matrices(loaded.family, loaded.model)):
        for matrix in matrices:
            if f"{names[index]}.{matrix.path}.weight" in source.dense:
                form = form_of(names[index], matrix, levels)
                state |= source.tensors(index, matrix, form)
        for sublayer in loaded.family.at(index).sublayers:
            width = levels.get(f"{names[index]}.{sublayer}", DENSE)
            state |= source.following(index, sublayer, Form(width=width))
    state |= _outer_tensors(loaded, source, levels)
    for block in layout(loaded, candidate).blocks:
        mixture = loaded.family.at(block.index).mixture
        if mixture is not None and block.reduced:
            module = loaded.family.blocks(loaded.model)[block.index]
            for (path, name), value in mixture.routing(module, block.experts).items():
                if isinstance(value, Tensor):
                    state[f"{names[block.index]}.{path}.{name}"] = value.data
    return with_shared(loaded.family, state)


def _outer_tensors(
    loaded: LoadedModel, source: WeightSource, levels: Mapping[str, Level]
) -> dict[str, Tensor]:
    """The embedding and the head in the types that they have, under all of their names."""
    found: dict[str, Tensor] = {}
    for unit in every_unit(loaded.family, loaded.model):
        if unit.kind == "outer" and unit.name in levels:
            name = f"{unit.name}.weight"
            weight = source.whole(unit.name, Form(levels[unit.name]))[name]
            found |= dict.fromkeys([name, *other_names(loaded.model, name)], weight)
    return found


def with_shared(family: Family, state: StateDict) -> dict[str, Tensor]:
    """A state in which blocks have the tensors of the first one with which they share them."""
    found = dict(state)
    for index, first in enumerate(family.sharing):
        if first >= 0:
            own, others = (f"{family.block_names[i]}.{family.commons}." for i in (first, index))
            found |= {
                f"{others}{name.removeprefix(own)}": tensor
                for name, tensor in state.items()
                if name.startswith(own)
            }
    return found


def assemble(
    cls: type[PreTrainedModel],
    config: PreTrainedConfig,
    state: StateDict,
    name_of: Callable[[str], str],
) -> PreTrainedModel:
    """A model of class `cls` that holds the tensors of `state`, to be saved and not to be run.

    What is computed rather than stored, such as rotary frequencies, stays on the meta device.
    `name_of` a parameter of the new model is its name in the dense model and in `state`.
    """
    with torch.device("meta"):
        model = cls(config)
    # Embedding models may come without the pooler that their class has.
    poolers = [name for name in model.state_dict() if name.startswith("pooler.")]
    without_missing(model, [name for name in poolers if name not in state])
    # Matrices of experts may be views of tensors that hold them transposed. What repeats one number
    # would take its whole size.
    found = {name: _tensor(name, model, state, name_of) for name in model.state_dict()}
    tensors = {name: own if 0 in own.stride() else own.contiguous() for name, own in found.items()}
    model.load_state_dict(tensors, assign=True)
    model.tie_weights()
    model.eval()
    return model


def name_when_read(model: PreTrainedModel) -> Callable[[str], str]:
    """What transformers calls a tensor of a checkpoint of a model's class when it has read it.

    Of experts, which have tensors of their own in most checkpoints, the one of all of them.
    """
    every = get_model_conversion_mapping(model, add_legacy=False)
    renamings = [
        one
        for one in every
        if isinstance(one, WeightRenaming) and not isinstance(one, PrefixChange)
    ]
    converters = [one for one in every if isinstance(one, WeightConverter)]
    return lambda stored: rename_source_key(stored, renamings, converters)[0]


def has_fused_experts(model: PreTrainedModel) -> bool:
    """Whether a model holds the matrices of all experts of a layer in one tensor."""
    return any(name.endswith(".experts.gate_up_proj") for name in model.state_dict())


def with_fused_experts(model: PreTrainedModel) -> PreTrainedModel:
    """A model of transformers' own class without matrices of each expert; itself if it has none."""
    if not any(isinstance(module, ExpertViews) for module in model.modules()):
        return model
    return assemble(type(model), model.config, model.state_dict(), str)


def _tensor(
    name: str, model: PreTrainedModel, state: StateDict, name_of: Callable[[str], str]
) -> Tensor:
    """A tensor of a model, maybe one that holds a matrix of every expert of a layer."""
    above, within, part = name.rpartition(".experts.")
    if not within or name_of(name) in state:
        return state[name_of(name)]
    path = f"{above}.experts"
    module, words = model.get_submodule(path), held_in(part)
    every = range(len(projections(module)["down"][0]))
    experts = [{w: state[name_of(f"{path}.{i}.{w}")] for w in words} for i in every]
    return fused(module, part, experts)


def renumbered(names: BlockNames, kept: Sequence[Block]) -> Callable[[str], str]:
    """A function from a parameter's name where only `kept` blocks are to its name when dense."""
    in_dense_block = names.renamed([block.index for block in kept])
    experts = {names[block.index]: block.experts for block in kept}
    expert = re.compile(rf"^({names.pattern})\.((?:.+\.)?experts)\.(\d+)\.")

    def dense_name(name: str) -> str:
        renamed = in_dense_block(name)
        found = expert.match(renamed)
        if not found:
            return renamed
        own = experts[found[1]][int(found[3])]
        return f"{found[1]}.{found[2]}.{own}.{renamed[found.end() :]}"

    return dense_name
