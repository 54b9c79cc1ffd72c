"""A copy of a Llama-like model whose channels are in another order: the same function.

SmolLM2-135M comes in 4-bit blocks of 32 weights. To store it in such blocks again costs nothing,
which no real checkpoint does. With its channels in a random order no block of 32 lies in one of
the old ones.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from evocompress.models.loading import LoadedModel, load

READERS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
"""Matrices whose inputs are the residual stream."""

WRITERS = ("o_proj", "down_proj")


def permuted_copy(source: str, seed: int, folder: Path) -> Path:
    """Writes the copy of a model into a folder, unless it is there already.

    The hidden channels, each MLP's channels and the channels of each value head get a random order.
    """
    path = folder / f"permuted-{seed}"
    if not path.exists():
        loaded = load(source)
        with torch.no_grad():
            permute(loaded, torch.Generator().manual_seed(seed))
        unfinished = folder / f"permuted-{seed}.unfinished"
        loaded.model.save_pretrained(unfinished)
        if loaded.tokenizer is not None:
            loaded.tokenizer.save_pretrained(unfinished)
        unfinished.rename(path)
    return path


def permute(loaded: LoadedModel, generator: torch.Generator) -> None:
    """Puts the channels of a model into another order, in place."""
    model = loaded.model
    config = model.config.get_text_config()
    hidden = torch.randperm(config.hidden_size, generator=generator)
    _order(model.get_input_embeddings(), 1, hidden)
    head = model.get_output_embeddings()
    if isinstance(head, nn.Module) and head.weight is not model.get_input_embeddings().weight:
        _order(head, 1, hidden)
    _order_norms(model, hidden)
    for block in loaded.family.blocks(model):
        for name, module in block.named_modules():
            last = name.rpartition(".")[2]
            if last in READERS:
                _order(module, 1, hidden)
            elif last in WRITERS:
                _order(module, 0, hidden)
        _order_mlp(block.mlp, torch.randperm(config.intermediate_size, generator=generator))
        _order_values(block.self_attn, generator)


def _order_norms(model: PreTrainedModel, hidden: Tensor) -> None:
    """The weights of all norms of the residual stream."""
    for module in model.modules():
        own = getattr(module, "weight", None)
        if "Norm" in type(module).__name__ and own is not None and len(own) == len(hidden):
            _order(module, 0, hidden)


def _order_mlp(mlp: nn.Module, channels: Tensor) -> None:
    for name, dimension in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
        _order(mlp.get_submodule(name), dimension, channels)


def _order_values(attention: nn.Module, generator: torch.Generator) -> None:
    """The channels of each value head, and the inputs of the output matrix that read them."""
    width = int(attention.head_dim)  # type: ignore[arg-type]
    values, output = attention.get_submodule("v_proj"), attention.get_submodule("o_proj")
    heads = len(values.weight) // width  # type: ignore[arg-type]
    each = output.weight.shape[1] // width // heads  # type: ignore[union-attr, operator]
    orders = [torch.randperm(width, generator=generator) for _ in range(heads)]
    _order(values, 0, torch.cat([head * width + own for head, own in enumerate(orders)]))
    queries = [orders[query // each] + query * width for query in range(heads * each)]
    _order(output, 1, torch.cat(queries))


def _order(module: nn.Module, dimension: int, order: Tensor) -> None:
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    weight.data = weight.data.index_select(dimension, order).contiguous()
    if dimension == 0 and isinstance(bias := getattr(module, "bias", None), nn.Parameter):
        bias.data = bias.data[order]
