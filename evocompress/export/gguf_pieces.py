"""SentencePiece tokenizers as llama.cpp has them: pieces with scores, the best pair merged first.

Hugging Face's file of such a tokenizer holds ranked merges in place of scores: every way to put a
piece together from two others, those of a better piece first. A byte-pair tokenizer that was
trained as such has only some of these ways, and is none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

SPACE = "▁"
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
NEVER = -1e6
"""The score of what no merge makes: single characters, bytes and added tokens."""

_REPLACED = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_PREPENDED = {"type": "Prepend", "prepend": SPACE}
_SPLIT = {
    "type": "Split",
    "pattern": {"String": " "},
    "behavior": "MergedWithPrevious",
    "invert": False,
}


@dataclass(frozen=True)
class Pieces:
    """What llama.cpp is to know of a SentencePiece tokenizer beside its tokens.

    Attributes:
        scores: Of every piece that merges make.
        prefixed: Whether a text begins with a space that is not in it.
        unknown: The token of what cannot be written; empty where there is none.
    """

    scores: Mapping[str, float]
    prefixed: bool
    unknown: str

    def score(self, token: str) -> float:
        """Of any token."""
        return self.scores.get(token, NEVER)


@lru_cache(maxsize=4)
def pieces_of(tokenizer: PreTrainedTokenizerBase) -> Pieces | None:
    """The pieces of a SentencePiece tokenizer, ``None`` for another kind."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    described = json.loads(backend.to_str()) if backend is not None else {}
    model = described.get("model", {})
    if model.get("type") != "BPE" or not model.get("byte_fallback"):
        return None
    prefixed = _prefixed(described)
    vocabulary = model["vocab"]
    if prefixed is None or not vocabulary.keys() >= set(BYTES):
        return None
    added = {token["content"] for token in described["added_tokens"]}
    merges = [_pair(merge) for merge in model["merges"]]
    scores = _scores(merges)
    if scores is None or not _whole(vocabulary.keys() - added - set(BYTES), merges, vocabulary):
        return None
    return Pieces(scores, prefixed, tokenizer.unk_token or "")


def _prefixed(described: Mapping[str, Any]) -> bool | None:
    """Whether a text gets a space in front; ``None`` where it is prepared in another way."""
    normalizer, steps = described["normalizer"], described["pre_tokenizer"]
    if normalizer is None and steps is not None and steps["type"] == "Metaspace":
        known = steps["replacement"] == SPACE and not steps["split"]
        return steps["prepend_scheme"] != "never" if known else None
    rules = normalizer or {}
    rules = rules.get("normalizers", [rules])
    if steps not in (None, _SPLIT) or rules not in ([_REPLACED], [_PREPENDED, _REPLACED]):
        return None
    return len(rules) > 1


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    """The two parts of a merge, which older files hold in one string."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _scores(merges: Sequence[tuple[str, str]]) -> dict[str, float] | None:
    """The scores of all pieces; ``None`` where the ranks of their merges tell none.

    All merges of a piece must lie together. Runs of one character, as of spaces, may have one
    score for all, and their merges are mixed.
    """
    last = {left + right: rank for rank, (left, right) in enumerate(merges)}
    scores: dict[str, float] = {}
    begin = end = -1
    inside: set[str] = set()
    for rank, (left, right) in enumerate(merges):
        piece = left + right
        if rank > end:
            begin, inside = rank, set()
        end = max(end, last[piece])
        inside.add(piece)
        if len(inside) > 1 and len(set("".join(inside))) > 1:
            return None
        scores[piece] = -float(begin)
    return scores


def _whole(
    pieces: set[str], merges: Sequence[tuple[str, str]], vocabulary: Mapping[str, int]
) -> bool:
    """Whether every way to put pieces together from two others is a merge.

    llama.cpp begins with single characters, also with those that are no pieces.
    """

    def found(part: str) -> bool:
        return len(part) == 1 or part in vocabulary

    known = set(merges)
    ways = ((piece[:cut], piece[cut:]) for piece in pieces for cut in range(1, len(piece)))
    return all(way in known for way in ways if found(way[0]) and found(way[1]))
