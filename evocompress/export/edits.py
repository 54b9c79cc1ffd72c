"""How the blocks of a compressed model differ from those of its class, for `modeling_derived`.

Nothing here is about a type of models: the family says what stands in for a sub-layer and what a
narrower one is told, and which shapes differ is seen in the weights.
"""

from __future__ import annotations

from evocompress.core.types import DENSE, Candidate
from evocompress.export.layout import Block, layout
from evocompress.export.weights import StateDict
from evocompress.models.edits import Edits, removal, telling
from evocompress.models.families.branches import Attributes
from evocompress.models.families.uneven import is_compressed, layer_config
from evocompress.models.loading import LoadedModel


def edits_of(loaded: LoadedModel, state: StateDict, candidate: Candidate, block: Block) -> Edits:
    """The edits of one block of a compressed model.

    Args:
        loaded: The dense model, or a compressed one, whose own edits stay.
        state: The tensors of the compressed model.
        candidate: What the model becomes.
        block: What that leaves of the block.
    """
    config = loaded.model.config
    before = layer_config(config, block.index).edits if is_compressed(config.model_type) else {}
    family, module = loaded.family.at(block.index), loaded.family.blocks(loaded.model)[block.index]
    gone = removal(family, module, block.dropped)
    now = _told(loaded, candidate, block)
    now |= {"experts": _experts(loaded, block), "shapes": _shapes(loaded, state, block)}
    removed = tuple(f"{path}." for paths in gone.values() for path in paths)
    kept = {
        key: {
            name: value
            for name, value in (before.get(key, {}) | told).items()
            if not f"{name}.".startswith(removed)
        }
        for key, told in now.items()
    }
    # A block that yields more than the hidden state makes the rest of it itself.
    passes = {"passes": (block.gone and not loaded.family.among) or before.get("passes")}
    return {key: value for key, value in (passes | gone | kept).items() if value}


def _told(loaded: LoadedModel, candidate: Candidate, block: Block) -> Edits:
    """What the modules of narrowed sub-layers are told, and how the configs differ they hold."""
    family, module = loaded.family.at(block.index), loaded.family.blocks(loaded.model)[block.index]
    told: Attributes = {}
    first = (loaded.family.sharing or (-1,) * (block.index + 1))[block.index]
    shared = [layout(loaded, candidate).blocks[first]] if first not in (-1, block.index) else []
    for own in [block, *(shared if "attention" not in block.dropped else ())]:
        for sublayer in own.narrow:
            unit = f"{loaded.family.block_names[own.index]}.{sublayer}"
            if candidate.by_name.get(unit, DENSE).narrow:
                told |= loaded.family.at(own.index).narrowing(module, sublayer, own.widths)
    if family.mixture and block.reduced:
        told |= family.mixture.routing(module, block.experts)
    return telling(module, told)


def _experts(loaded: LoadedModel, block: Block) -> dict[str, list[int]]:
    """Where a mixture holds its experts, how many are left, and how many channels they have."""
    mixture = loaded.family.at(block.index).mixture
    own = [len(block.experts), block.widths.channels]
    return {mixture.experts: own} if mixture else {}


def _shapes(loaded: LoadedModel, state: StateDict, block: Block) -> dict[str, list[int]]:
    """The tensors of a block that have another shape, or that the block does not have."""
    prefix, dense = f"{loaded.family.block_names[block.index]}.", loaded.model.state_dict()
    experts = tuple(f"{prefix}{path}." for path in _experts(loaded, block))
    return {
        name.removeprefix(prefix): list(tensor.shape)
        for name, tensor in state.items()
        if name.startswith(prefix)
        and not name.startswith(experts)
        and (name not in dense or dense[name].shape != tensor.shape)
    }
