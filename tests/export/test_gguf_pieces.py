"""SentencePiece tokenizers in GGUF files, read as llama.cpp reads them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from export_cases import write
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from evocompress.export.gguf_pieces import SPACE, pieces_of
from evocompress.export.gguf_tokenizer import tokenizer_obstacle
from evocompress.models.loading import LoadedModel
from evocompress.testing.byte_tokenizers import TEXTS, trained_tokenizer
from evocompress.testing.formats import candidate_of
from evocompress.testing.gguf_reference import GgufReference
from evocompress.testing.piece_tokenizers import KINDS, piece_tokenizer
from evocompress.testing.tiny import windowless

SPACES = ("a     b", "   three", " " * 21 + "x", "tail   ", "ab\n\n\tcd", "")
NORMAL, UNKNOWN, CONTROL, UNUSED, BYTE = 1, 2, 3, 5, 6


def with_tokenizer(tokenizer: Any) -> LoadedModel:
    return replace(windowless("llama", layers=1, vocabulary=700), tokenizer=tokenizer)


def as_llama_cpp(metadata: dict[str, Any], text: str) -> list[int]:
    """The best pair of neighbours that is a piece is merged first, the left one of equals."""
    ids = {token: index for index, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    scores = metadata["tokenizer.ggml.scores"]
    first = SPACE if metadata["tokenizer.ggml.add_space_prefix"] and text else ""
    symbols = list(first + text.replace(" ", SPACE))
    while True:
        pairs = ["".join(symbols[i : i + 2]) for i in range(len(symbols) - 1)]
        known = [i for i, pair in enumerate(pairs) if pair in ids]
        if not known:
            break
        best = max(known, key=lambda i: (scores[ids[pairs[i]]], -i))
        symbols[best : best + 2] = [pairs[best]]
    found = []
    for symbol in symbols:
        pieces = [f"<0x{byte:02X}>" for byte in symbol.encode()]
        found += [ids[symbol]] if symbol in ids else [ids[piece] for piece in pieces]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_text_is_cut_as_by_the_model_s_tokenizer(kind: str, tmp_path: Path) -> None:
    tokenizer = piece_tokenizer(kind)
    loaded = with_tokenizer(tokenizer)
    out = write(loaded, candidate_of(loaded, {}), tmp_path / "out", "gguf")
    metadata = GgufReference(out / "model.gguf").metadata
    for text in (*TEXTS, *SPACES):
        if kind == "llama" and text.startswith(" "):
            continue  # this form has no further space in front, other than SentencePiece itself
        ours = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert as_llama_cpp(metadata, text) == ours, text
    assert metadata["tokenizer.ggml.model"] == "llama"
    assert metadata["tokenizer.ggml.add_space_prefix"] == (kind != "gemma")
    assert metadata["tokenizer.ggml.add_bos_token"] is True
    assert metadata["tokenizer.ggml.bos_token_id"] == 1
    kinds = metadata["tokenizer.ggml.token_type"]
    assert list(kinds[:4]) == [UNKNOWN, CONTROL, CONTROL, BYTE]
    assert kinds[len(tokenizer) - 1] == NORMAL and kinds[-1] == UNUSED


def test_a_byte_pair_tokenizer_that_was_trained_as_such_is_refused() -> None:
    tokenizer = piece_tokenizer("llama")
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    # One way to make a piece is gone, by which llama.cpp would go.
    described["model"]["merges"].remove(["t", "he"])
    assert pieces_of(reread(described)) is None
    obstacle = tokenizer_obstacle(with_tokenizer(reread(described)))
    assert obstacle and "nor byte-pair SentencePiece" in obstacle


def test_merges_whose_ranks_tell_no_scores_are_refused() -> None:
    described = json.loads(piece_tokenizer("llama").backend_tokenizer.to_str())
    merges = described["model"]["merges"]
    merges.append(merges.pop(merges.index(["t", "he"])))
    assert pieces_of(reread(described)) is None


@pytest.mark.parametrize("change", ["split", "bytes", "normalizer"])
def test_what_llama_cpp_prepares_otherwise_is_refused(change: str) -> None:
    described = json.loads(piece_tokenizer("llama").backend_tokenizer.to_str())
    if change == "split":
        described["pre_tokenizer"]["split"] = True
    elif change == "bytes":
        described["model"]["byte_fallback"] = False
    else:
        described["normalizer"] = {"type": "NFKC"}
    assert pieces_of(reread(described)) is None


def reread(described: dict[str, Any]) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(described)))


def test_other_kinds_have_no_pieces() -> None:
    assert pieces_of(trained_tokenizer("gpt-2")) is None
    unigram = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    assert pieces_of(PreTrainedTokenizerFast(tokenizer_object=unigram)) is None
