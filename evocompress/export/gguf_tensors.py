"""The tensors of a model by llama.cpp's names, and as its architectures hold them.

gguf-py's tables say what a tensor is called. How transformers' class holds one, transposed or as
the difference from one, is seen in the modules.
"""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from evocompress.core.errors import ExportError
from evocompress.export.gguf_architectures import ARCHITECTURES, LlamaCpp
from evocompress.export.gguf_language import (
    BODY,
    has_other_parts,
    language_body,
    language_tensors,
    language_type,
)
from evocompress.export.gguf_latent import by_heads
from evocompress.export.gguf_mixers import apart, as_mixer, tensor_kinds
from evocompress.export.gguf_multipliers import with_multipliers
from evocompress.export.gguf_rotary import factors, frequencies
from evocompress.export.gguf_uneven import as_uneven
from evocompress.models.families.uneven import text_config
from evocompress.models.loading import LoadedModel

ROPE_FACTORS = "rope_freqs.weight"

EXPERT = re.compile(r".+\.(\d+)\.(?:\w+\.)?experts\.\d+\.(\w+)_proj\.(weight|bias)")

RENAMED = (
    (r"block_sparse_moe\.router\.weight$", "block_sparse_moe.router.layer.weight"),
    (r"\.gate\.moe_statics\.e_score_correction_bias$", ".moe_statics.e_score_correction.bias"),
    (r"\.e_score_correction_bias$", ".e_score_correction.bias"),
    (r"\.expert_bias$", ".expert_bias.bias"),
    (r"\.dt_bias$", ".dt_proj.bias"),
    (r"\.(sinks|layer_scalar|gate_up_proj|down_proj)$", r".\1.weight"),
    (r"\.router\.scale$", ".router.proj.scale"),
    (r"\.router\.per_expert_scale$", ".experts.down_proj.scale"),
)
"""What transformers 5 calls otherwise than the files for which gguf-py's tables were made."""


def named_tensors(
    model: PreTrainedModel, loaded: LoadedModel, found: LlamaCpp
) -> dict[str, Tensor]:
    """The tensors by llama.cpp's names; layers without any have no number.

    Args:
        model: Of format ``hf`` or ``stock``.
        loaded: The dense model that it was made from.
        found: What llama.cpp calls its architecture.
    """
    if loaded.family.mixture is not None:
        loaded.family.mixture.prepare(model, loaded.family.blocks(model))
    own = ARCHITECTURES.get(language_type(loaded), found) if found.borrowed else found
    tensors = _renumbered(dict(_named(model, loaded, own.name, headed=found.headed)))
    if found.uneven:
        tensors = as_uneven(tensors, text_config(model.config), loaded, found)
    if found.neighbours or found.halves:
        tensors = _turned(tensors, loaded, interleaved if found.neighbours else halved)
    scaled = factors(language_body(loaded.family, loaded.model)) if found.factors else None
    if scaled is not None:
        tensors[ROPE_FACTORS] = scaled
    return tensors


def _named(
    model: PreTrainedModel, loaded: LoadedModel, name_of_type: str, *, headed: bool
) -> Iterator[tuple[str, Tensor]]:
    """The tensors as the type's architecture holds them; those of all experts are one."""
    head, config = model.get_output_embeddings(), text_config(model.config)
    tied = config.tie_word_embeddings or head.weight is model.get_input_embeddings().weight
    output = next(path for path, module in model.named_modules() if module is head)
    stacks: dict[str, list[Tensor]] = defaultdict(list)
    for name, alone, tensor in language_tensors(loaded.family, model):
        if (name == f"{output}.weight" and tied and not headed) or ".act_fn." in name:
            continue
        expert = EXPERT.fullmatch(name)
        if expert:
            stacks[f"blk.{expert[1]}.ffn_{expert[2]}_exps.{expert[3]}"].append(tensor)
            continue
        held = _held(name, tensor, model, loaded)
        for part, own in apart(alone, held, mixture=loaded.family.mixture is not None):
            place = gguf_name(part, model, name_of_type)
            own = with_multipliers(place, as_mixer(place, own, config), config)
            yield from by_heads(place, own, config)
    yield from _of_experts(
        {name: torch.stack(every) for name, every in stacks.items()}, name_of_type
    )


def _of_experts(stacks: Mapping[str, Tensor], architecture: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors of all experts, with gate and up as one (E, 2I, H) where there are no others."""
    kinds = tensor_kinds(architecture)
    joined = "FFN_GATE_UP_EXP" in kinds and "FFN_UP_EXP" not in kinds
    for name, tensor in stacks.items():
        gate = name.replace(".ffn_up_exps.", ".ffn_gate_exps.")
        if joined and gate != name:
            both = torch.cat([stacks[gate], tensor], dim=1)
            yield name.replace(".ffn_up_exps.", ".ffn_gate_up_exps."), both
        elif not joined or ".ffn_gate_exps." not in name:
            yield name, tensor


def _turned(
    tensors: Mapping[str, Tensor],
    loaded: LoadedModel,
    reordered: Callable[[Tensor, int, int], Tensor],
) -> dict[str, Tensor]:
    """The tensors with rows of queries and keys as llama.cpp rotates them."""
    turned = frequencies(language_body(loaded.family, loaded.model))
    count = 2 * len(next(iter(turned.values()), ()))
    size = loaded.family.architecture(loaded.model).head_dim
    return {
        name: reordered(tensor, size, count)
        if count and re.search(r"\.attn_[qk]\.", name)
        else tensor
        for name, tensor in tensors.items()
    }


def gguf_name(name: str, model: PreTrainedModel, architecture: str) -> str:
    """What llama.cpp calls a tensor."""
    import gguf

    known = {word: known for known, word in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(
        known[architecture], text_config(model.config).num_hidden_layers
    )
    for pattern, other in RENAMED:
        name = re.sub(pattern, other, name)
    body = BODY if has_other_parts(model) else model.base_model_prefix
    bare = name.removeprefix(f"{body}.")
    for tried in (name, bare, f"backbone.{bare}"):
        place: str | None = table.get_name(tried, try_suffixes=(".weight", ".bias", ".scale"))
        if place is not None:
            return place
    raise ExportError(f"llama.cpp's architecture {architecture} has no place for {name}")


def _held(name: str, tensor: Tensor, model: PreTrainedModel, loaded: LoadedModel) -> Tensor:
    """A tensor as llama.cpp holds it, but for the order in which rows are rotated."""
    path, _, part = name.rpartition(".")
    module = model.get_submodule(path)
    if isinstance(module, Conv1D) and part == "weight":
        return tensor.T.contiguous()
    if part == "weight" and tensor.dim() == 1 and _is_offset(module):
        return tensor + 1
    within = re.fullmatch(rf"{loaded.family.block_names.pattern}\.(.+)", path)
    grouped = {m.path for m in loaded.family.matrices if m.rows == ("grouped",)}
    if within and within[within.lastindex or 0] in grouped:
        return _ungrouped(tensor, loaded)
    return tensor


def _is_offset(module: nn.Module) -> bool:
    """Whether a norm multiplies by its weight and one, so that it does something without any."""
    if "norm" not in type(module).__name__.lower():
        return False
    if "Gated" in type(module).__name__:
        return False
    plain = copy.deepcopy(module).float().cpu().requires_grad_(False)
    for parameter in plain.parameters():
        parameter.zero_()
    size = plain.get_parameter("weight").shape[-1]
    yielded: Tensor = plain(torch.arange(1.0, size + 1)[None])
    return bool(yielded.any())


def _ungrouped(tensor: Tensor, loaded: LoadedModel) -> Tensor:
    """Rows in groups of queries, key and value, as all queries, all keys and all values."""
    architecture = loaded.family.architecture(loaded.model)
    within = architecture.heads[0] // architecture.kv_heads[0]
    rest = tensor.shape[1:]
    groups = tensor.reshape(-1, within + 2, architecture.head_dim, *rest)
    parts = groups[:, :within], groups[:, within], groups[:, within + 1]
    return torch.cat([part.reshape(-1, *rest) for part in parts])


def interleaved(tensor: Tensor, head_dim: int, turned: int | None = None) -> Tensor:
    """Rows of queries or keys, weight (heads * head_dim, H) or bias, as llama.cpp rotates them.

    Hugging Face rotates element i of the first `turned` ones of a head together with element
    i + turned / 2, llama.cpp neighbours.
    """
    return _reordered(tensor, head_dim, turned or head_dim, 2)


def halved(tensor: Tensor, head_dim: int, turned: int) -> Tensor:
    """The inverse of `interleaved`, where Hugging Face rotates neighbours and llama.cpp halves."""
    return _reordered(tensor, head_dim, turned, turned // 2)


def _reordered(tensor: Tensor, head_dim: int, turned: int, parts: int) -> Tensor:
    """Rows with the first of each of so many parts of what is rotated first, then the second."""
    heads = tensor.reshape(-1, head_dim, *tensor.shape[1:])
    each = heads[:, :turned].reshape(len(heads), parts, turned // parts, *tensor.shape[1:])
    mixed = each.transpose(1, 2).flatten(1, 2)
    return torch.cat([mixed, heads[:, turned:]], dim=1).reshape(tensor.shape)


def _renumbered(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with layers numbered one after the other."""
    numbers = sorted({int(name.split(".")[1]) for name in tensors if name.startswith("blk.")})
    places = {str(number): str(place) for place, number in enumerate(numbers)}
    return {
        re.sub(r"^blk\.(\d+)\.", lambda match: f"blk.{places[match[1]]}.", name): tensor
        for name, tensor in tensors.items()
    }
