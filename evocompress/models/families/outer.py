"""What a model has beside the units of its blocks: input embedding, output head, and caches."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from evocompress.core.types import Unit
from evocompress.core.units import UnitTree
from evocompress.models.families.base import Family
from evocompress.models.families.caches import cache_units

EMBEDDING, HEAD = "embedding", "head"
"""Their roles. A head that is the embedding, as its weights are, has the role of that."""


def every_unit(family: Family, model: PreTrainedModel) -> UnitTree:
    """The units of a model's blocks, and behind them caches and those outside, as far as known.

    Examples:
        >>> from evocompress.testing.tiny import tiny_loaded
        >>> loaded = tiny_loaded("qwen3")
        >>> [unit.name for unit in every_unit(loaded.family, loaded.model)[-2:]]
        ['model.embed_tokens', 'lm_head']
    """
    inside = family.units(model)
    if family.alone or not (inside and family.task.causal):
        return inside
    names = {id(module): name for name, module in model.named_modules()}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    found = cache_units(family, model, inside)
    if isinstance(embedding, nn.Embedding):
        found.append(_outer(names[id(embedding)], inside[0].block, EMBEDDING, embedding))
    tied = embedding is not None and head is not None and head.weight is embedding.weight
    if isinstance(head, nn.Linear) and not tied:
        found.append(_outer(names[id(head)], inside[-1].block, HEAD, head))
    return UnitTree((*inside, *found))


def _outer(name: str, block: int, role: str, module: nn.Embedding | nn.Linear) -> Unit:
    rows, columns = module.weight.shape
    return Unit(
        *(name, "outer", None, block, role),
        shape=(rows, columns),
        bias=getattr(module, "bias", None) is not None,
        droppable=False,
        narrowable=False,
    )


def other_names(model: PreTrainedModel, name: str) -> list[str]:
    """What else a parameter is called: the weights of an embedding that is the head as well."""
    own = model.get_parameter(name)
    every = model.named_parameters(remove_duplicate=False)
    return [other for other, parameter in every if parameter is own and other != name]
