"""The tokenizer of a GGUF file: copied from the model's own, or made from Hugging Face's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PreTrainedTokenizerBase

from evocompress.core.errors import ExportError
from evocompress.export.gguf_pieces import BYTES, Pieces, pieces_of
from evocompress.models.checkpoints import quiet_transformers
from evocompress.models.demo import DEMO_SOURCE, demo_gguf
from evocompress.models.loading import LoadedModel

_WORDS = r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"""
_REST = r"""| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""

SPLITS = {_WORDS + r"\p{N}{1,3}" + _REST: "llama-bpe", _WORDS + r"\p{N}" + _REST: "qwen2"}
"""{regular expression of a pre-tokenizer in ``tokenizer.json``: what llama.cpp calls it}."""

KNOWN = ("gpt-2", "smollm", *SPLITS.values())

NEVER_MERGED = "<|endoftext|> <|endoftext|>"
"""A merge that does nothing, since merging begins with single characters: llama.cpp wants a list of
merges, and gguf-py writes no empty one."""


def tokenizer_obstacle(loaded: LoadedModel) -> str | None:
    """Why the tokenizer of a model cannot be written, if it cannot."""
    if source_gguf(loaded) is not None or loaded.tokenizer is None:
        return None
    if _pre_tokenizer(loaded.tokenizer) is None and pieces_of(loaded.tokenizer) is None:
        return (
            f"cannot hold the tokenizer of this {loaded.family.model_type} model, which is neither "
            f"one of llama.cpp's byte-level kinds {', '.join(KNOWN)} nor byte-pair SentencePiece; "
            "load the model from a GGUF file, and its tokenizer is copied"
        )
    return None


def source_gguf(loaded: LoadedModel) -> Path | None:
    """The GGUF file that a model was read from."""
    if loaded.source == DEMO_SOURCE:
        return demo_gguf()
    return Path(loaded.source).expanduser() if loaded.source.endswith(".gguf") else None


def add_tokenizer(writer: Any, loaded: LoadedModel, rows: int) -> None:
    """Adds the metadata ``tokenizer.*``; llama.cpp wants a token for each of the embedding's rows.

    Raises:
        ExportError: The model's GGUF file is gone, or holds another number of tokens.
    """
    source = source_gguf(loaded)
    if source is not None:
        _add_copied(writer, source, rows)
    elif loaded.tokenizer is not None:
        _add_made(writer, loaded.tokenizer, rows)
    else:
        writer.add_tokenizer_model("no_vocab")


def _add_copied(writer: Any, source: Path, rows: int) -> None:
    from gguf import GGUFReader

    if not source.is_file():
        raise ExportError(f"{source} is gone, from which the tokenizer would be copied: restore it")
    fields = GGUFReader(source).fields
    found = len(fields["tokenizer.ggml.tokens"].data)
    if found != rows:
        raise ExportError(f"{source} has {found} tokens and the model {rows}: their numbers differ")
    for name, field in fields.items():
        if name.startswith("tokenizer."):
            inner = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=inner)


def _add_made(writer: Any, tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """As llama.cpp's conversion does for byte-level BPE and for SentencePiece."""
    from gguf import SpecialVocab

    tokens, kinds = _tokens(tokenizer, rows)
    pieces = pieces_of(tokenizer)
    writer.add_tokenizer_model("llama" if pieces else "gpt2")
    writer.add_tokenizer_pre("default" if pieces else _pre_tokenizer(tokenizer))
    writer.add_token_list(tokens)
    if pieces:
        writer.add_token_scores([pieces.score(token) for token in tokens])
        writer.add_add_space_prefix(pieces.prefixed)
        kinds = _kinds_of_pieces(pieces, tokens, kinds)
    writer.add_token_types(kinds)
    with TemporaryDirectory() as scratch, quiet_transformers():
        tokenizer.save_pretrained(scratch)
        special = SpecialVocab(scratch, load_merges=pieces is None, n_vocab=rows)
    if pieces is None:
        special.merges = special.merges or [NEVER_MERGED]
    ids = tokenizer("a")["input_ids"]
    special.add_special_token = {
        "bos": ids[0] == tokenizer.bos_token_id,
        "eos": ids[-1] == tokenizer.eos_token_id,
    }
    special.add_to_gguf(writer, quiet=True)


def _tokens(tokenizer: PreTrainedTokenizerBase, rows: int) -> tuple[list[str], list[int]]:
    """For each row of the embedding its token and the kind that llama.cpp takes it for."""
    from gguf import TokenType

    names = {index: token for token, index in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    tokens, kinds = [], []
    for index in range(rows):
        kind = TokenType.NORMAL if index in names else TokenType.UNUSED
        if index in added:
            kind = TokenType.CONTROL if added[index].special else TokenType.USER_DEFINED
        tokens.append(names.get(index, f"[PAD{index}]"))
        kinds.append(int(kind))
    return tokens, kinds


def _kinds_of_pieces(pieces: Pieces, tokens: Sequence[str], kinds: Sequence[int]) -> list[int]:
    """The kinds of tokens, with those of bytes and of the unknown token."""
    from gguf import TokenType

    own = dict.fromkeys(BYTES, int(TokenType.BYTE)) | {pieces.unknown: int(TokenType.UNKNOWN)}
    return [own.get(token, kind) for token, kind in zip(tokens, kinds, strict=True)]


@lru_cache(maxsize=4)
def _pre_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """llama.cpp's name for how a byte-level BPE tokenizer cuts text, ``None`` for another kind."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    described = json.loads(backend.to_str())
    normalizer = (described["normalizer"] or {"type": "NFC"})["type"]
    steps = described["pre_tokenizer"] or {"type": "none"}
    steps = steps.get("pretokenizers", [steps])
    if described["model"]["type"] != "BPE" or normalizer != "NFC" or len(steps) > 2:
        return None
    *first, last = steps
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return None
    if not first:
        return "gpt-2" if last["use_regex"] else None
    if first[0]["type"] == "Digits":
        return "smollm" if first[0]["individual_digits"] and last["use_regex"] else None
    if first[0]["type"] != "Split" or first[0]["behavior"] != "Isolated" or last["use_regex"]:
        return None
    return SPLITS.get(first[0]["pattern"].get("Regex", ""))
