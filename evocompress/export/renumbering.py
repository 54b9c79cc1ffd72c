"""What the class of a model makes of blocks with other numbers, and of zeros: seen in tiny models.

Hand-written families are known; of derived ones this is tried.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from evocompress.core.errors import one_line
from evocompress.core.types import Candidate
from evocompress.export.configs import cut_config, use_of_index
from evocompress.export.layout import SUBLAYERS, Layout, layout
from evocompress.models.families import SubLayerName
from evocompress.models.families.derivation.derived import Derived
from evocompress.models.families.derivation.shrink import TRIES, random_model, shrunk
from evocompress.models.families.derivation.tied import first_sharing
from evocompress.models.loading import LoadedModel, once

TOKENS = torch.arange(3, 12)[None]


def renumbering(left: Layout, loaded: LoadedModel) -> str | None:
    """The obstacle of a model whose blocks must keep their numbers."""
    unit = left.first(lambda block, sublayer: sublayer in block.dropped)
    if unit is None or not numbers_matter(loaded):
        return None
    return f"cannot leave out {unit}, because {_why_numbers_matter(loaded)}"


def numbers_matter(loaded: LoadedModel) -> bool:
    """Whether blocks compute something else when they are numbered differently.

    Of a derived family this is seen in tiny models, one without a block that the other skips. How
    often a block is run, where that is more than once, follows from the number of all; and classes
    whose blocks share weights say so of certain ones.
    """
    return bool(_why_numbers_matter(loaded))


@once
def _why_numbers_matter(loaded: LoadedModel) -> str:
    """What becomes of blocks with other numbers; empty where that is nothing."""
    kind = loaded.family.model_type
    if use := use_of_index(loaded.model.config):
        return f"this {kind} model {use}"
    if loaded.family.calls:
        return f"several layers of {kind} models are one block"
    if loaded.family.tied:
        return f"the class of {kind} models names the blocks that share weights"
    if not _is_tried(loaded):
        return ""
    assert isinstance(loaded.family, Derived)
    units = loaded.family.units(loaded.model)
    gone = next((u.block for u in units if u.kind == "block" and u.droppable), None)
    if gone is None:
        return ""
    why = ""
    for heads, narrow_heads in TRIES:
        try:
            small = _small(loaded, gone, heads, narrow_heads=narrow_heads)
            if _computes_the_same(loaded, small, gone):
                return ""
            why = f"the class of {kind} models makes others of fewer blocks"
        except Exception as error:  # classes fail with any type of error
            why = f"no tiny {kind} model of fewer blocks could be tried: {one_line(error)}"
    return why


def _is_tried(loaded: LoadedModel) -> bool:
    """Whether a model is of a derived family and reads texts."""
    return isinstance(loaded.family, Derived) and loaded.family.task.reads_text


def _small(loaded: LoadedModel, gone: int, heads: int, *, narrow_heads: bool) -> PreTrainedConfig:
    """The config of a tiny model with a block that goes, every kind of blocks, and one more."""
    assert isinstance(loaded.family, Derived)
    order = loaded.family.order
    layers = min(max(gone, *(order.index(kind) for kind in order)) + 2, len(order))
    layers = max(layers, first_sharing(loaded.family.blocks(loaded.model)))
    if loaded.family.calls:
        layers = sum(loaded.family.calls)
    return shrunk(loaded.model.config, layers, heads=heads, narrow_heads=narrow_heads)


@torch.no_grad()
def _computes_the_same(loaded: LoadedModel, small: PreTrainedConfig, gone: int) -> bool:
    """Whether a tiny model of a config without a block computes what it does when it is skipped."""
    family, cls = loaded.family, type(loaded.model)
    model = random_model(cls, small)
    state = model.state_dict()
    skipped = family.blocks(model)[gone]
    for sublayer in family.at(gone).sublayers:
        for path, module in family.at(gone).replacements(skipped, sublayer).items():
            skipped.set_submodule(path, module)
    dense = layout(loaded, Candidate()).blocks[: len(family.blocks(model))]
    kept = [block for block in dense if block.index != gone]
    built: Any = random_model(cls, cut_config(small, kept))
    name_of = family.block_names.renamed([block.index for block in kept])
    built.load_state_dict({name: state[name_of(name)] for name in built.state_dict()})
    return torch.allclose(_states(loaded, built), _states(loaded, model), rtol=1e-6, atol=1e-9)


@once
def not_silenced(loaded: LoadedModel) -> dict[tuple[int, SubLayerName], str]:
    """Why zeros in the matrices of a sub-layer do not make it add nothing.

    Returns:
        {(kind of block, sub-layer): a relative clause about it}, of those that are so, or that
        could not be tried.
    """
    if not _is_tried(loaded):
        return {}
    assert isinstance(loaded.family, Derived)
    order, why = loaded.family.order, ""
    for heads, narrow_heads in TRIES:
        try:
            small = _small(loaded, 0, heads, narrow_heads=narrow_heads)
            return {
                (kind, sublayer): "which adds something also if it is all zeros"
                for kind in set(order)
                for sublayer in loaded.family.at(order.index(kind)).sublayers
                if not _is_silenced(loaded, small, order.index(kind), sublayer)
            }
        except Exception as error:  # classes fail with any type of error
            kind_of_model = loaded.family.model_type
            why = f"because no tiny {kind_of_model} model could be tried: {one_line(error)}"
    return {(kind, sublayer): why for kind in order for sublayer in SUBLAYERS}


@torch.no_grad()
def _is_silenced(
    loaded: LoadedModel, small: PreTrainedConfig, index: int, sublayer: SubLayerName
) -> bool:
    """Whether a block of a tiny model with zeros for a sub-layer does as one without that."""
    family, cls = loaded.family.at(index), type(loaded.model)
    without, zeroed = random_model(cls, small), random_model(cls, small)
    block = loaded.family.blocks(without)[index]
    for path, module in family.replacements(block, sublayer).items():
        block.set_submodule(path, module)
    own = (matrix for matrix in family.matrices if f"{matrix.path}.weight" not in family.tied)
    paths = [matrix.path for matrix in own if matrix.sublayer == sublayer]
    if family.mixture is not None and sublayer == "mlp":
        paths.append(family.mixture.experts)
    for name, parameter in loaded.family.blocks(zeroed)[index].named_parameters():
        if name.startswith(tuple(f"{path}." for path in paths)):
            parameter.zero_()
    return torch.allclose(_states(loaded, zeroed), _states(loaded, without), rtol=1e-6, atol=1e-9)


def _states(loaded: LoadedModel, model: PreTrainedModel) -> Tensor:
    return loaded.family.hidden_states(model, TOKENS)
