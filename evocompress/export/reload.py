"""Reads a written checkpoint back, to be measured or healed."""

from __future__ import annotations

from pathlib import Path

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evocompress.compression.rounded_caches import round_cache
from evocompress.core.errors import ModelError
from evocompress.core.storage import GROUPS, STORAGE
from evocompress.core.types import DENSE, Candidate
from evocompress.export.gguf_writing import GGUF_FILE
from evocompress.export.record import (
    CANDIDATE_FILE,
    read_candidate,
    read_record,
    verify_checkpoint,
)
from evocompress.models.checkpoints import (
    local_checkpoint,
    quiet_transformers,
    read_model,
    read_tokenizer,
)
from evocompress.models.families import family_of, split_experts
from evocompress.models.families.caches import CACHE, caching_modules
from evocompress.models.loading import LoadedModel
from evocompress.models.modeling import register

SAMPLE = "A line of 2,048 naïve words;\n\tthen «другие», 漢字 and 🙂."
"""Text that tokenizers of the same tokens may still split in other ways."""


def read_checkpoint(path: Path, like: PreTrainedModel) -> PreTrainedModel:
    """The model in a folder that `evocompress.export.materialize` wrote, in evaluation mode.

    Args:
        path: The folder.
        like: The dense model, whose task, dtype and device it gets.

    Returns:
        It computes with keys and values as the candidate caches them.

    Raises:
        ModelError: The folder holds no checkpoint, one of a format that holds coarser types, one
            of another vocabulary, or a file of it is missing or damaged.
        ExportError: A file of it is not what was written.
    """
    _check_weights_are_read(path)
    register()
    checkpoint, family = local_checkpoint(path), family_of(like)
    verify_checkpoint(path)
    with quiet_transformers():
        model = read_model(checkpoint, like.dtype, family.task.auto, family.unused)
    words, known = _vocabulary(model), _vocabulary(like)
    if words != known:
        raise ModelError(
            f"{path} has a vocabulary of {words} tokens and the dense model one of {known}: their "
            "outputs cannot be compared; give a checkpoint that was made of this model"
        )
    split_experts(model, like)
    nn.Module.to(model, like.device)
    model.eval()
    if (path / CANDIDATE_FILE).exists():
        _round_caches(model, like, read_candidate(path))
    return model


def _check_weights_are_read(path: Path) -> None:
    """Refuse checkpoints whose weights are not those that compute."""
    record = read_record(path) if (path / CANDIDATE_FILE).is_file() else None
    types = {tensor.type for tensor in record.tensors.values()} if record else set()
    packed = any(STORAGE[name].lane == GROUPS for name in types & STORAGE.keys())
    if packed or (path / GGUF_FILE).exists():
        form = record.format if record else "gguf"
        raise ModelError(
            f"{path} is of format {form}, which heal and evaluate do not read: remove it, write it "
            "elsewhere with --out, and the run's own checkpoint with --for transformers"
        )


def _round_caches(model: PreTrainedModel, like: PreTrainedModel, candidate: Candidate) -> None:
    """Has the attentions that are left, which are in their order, round what they cache."""
    levels, family = candidate.by_name, family_of(like)
    if not any(level.cache for level in levels.values()):
        return
    caching = caching_modules(family, like)
    classes = tuple({type(like.get_submodule(path)) for path in caching.values()})
    kept = [unit for unit in caching if not levels.get(unit, DENSE).drop]
    there = [module for module in model.modules() if isinstance(module, classes)]
    for unit, module in zip(kept, there, strict=True):
        name = f"{unit}.{CACHE}"
        if now := levels.get(name, DENSE).cache:
            round_cache(module, name, now)


def check_tokenizer(path: Path, loaded: LoadedModel) -> None:
    """Refuses a checkpoint that comes with another tokenizer than the dense model's.

    Raises:
        ModelError: The tokenizers differ, or the checkpoint's cannot be read.
    """
    if loaded.tokenizer is None or not list(path.glob("*token*")):
        return
    with quiet_transformers():
        own = read_tokenizer(local_checkpoint(path))
    if not same_tokens(own, loaded.tokenizer):
        raise ModelError(
            f"{path} has another tokenizer than {loaded.source}, so the same text is not the same "
            "to both: write the checkpoint again with 'evocompress materialize'"
        )


def same_tokens(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers have the same tokens and split `SAMPLE` alike."""
    ours, theirs = ((each.get_vocab(), each(SAMPLE)["input_ids"]) for each in (one, other))
    return bool(ours == theirs)


def _vocabulary(model: PreTrainedModel) -> int | None:
    """The number of tokens that a model's config says; ``None`` where it reads no text."""
    words: int | None = getattr(model.config.get_text_config(), "vocab_size", None)
    return words
