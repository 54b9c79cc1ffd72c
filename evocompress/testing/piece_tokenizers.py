"""SentencePiece tokenizers of byte pairs, as Llama 2 and Gemma have, made of a few lines."""

from __future__ import annotations

from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import generate_merges

from evocompress.export.gguf_pieces import BYTES, SPACE
from evocompress.testing.byte_tokenizers import TEXTS

SPECIAL = ("<unk>", "<s>", "</s>")
KINDS = ("llama", "mistral", "gemma")
"""Llama 2 as transformers 5 makes it, Mistral as in its own file, Gemma without a first space."""

TWO_WAYS = ("th", "he", "the")
"""Pieces; one of them can be put together in two ways."""

RUNS = tuple(SPACE * length for length in (2, 3, 4, 8))


def piece_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of fewer than 700 tokens that adds a beginning of text.

    Args:
        kind: One of `KINDS`.
    """
    characters = sorted({character for text in TEXTS[:2] for character in text.replace(" ", SPACE)})
    usable = [piece for piece in _trained() if len(piece) > 1 and set(piece) <= set(characters)]
    pieces = list(dict.fromkeys((*usable, *TWO_WAYS)))
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *BYTES))}
    for token in (*pieces, *RUNS, *characters):
        vocabulary.setdefault(token, len(vocabulary))
    scores = {piece: -float(rank) for rank, piece in enumerate(pieces)}
    scores |= dict.fromkeys(RUNS, -1e9)  # as in Llama 2, all the same
    model = models.BPE(
        vocab=vocabulary,
        merges=generate_merges(vocabulary, scores),
        unk_token=SPECIAL[0],
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    _prepare(tokenizer, kind)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=SPECIAL[0],
        bos_token=SPECIAL[1],
        eos_token=SPECIAL[2],
        add_bos_token=True,
    )


def _trained() -> list[str]:
    """Pieces of the texts, the most frequent first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=400, show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)


def _prepare(tokenizer: Any, kind: str) -> None:
    """Gives a tokenizer what comes before its pieces and after them."""
    replace, prepend = normalizers.Replace(" ", SPACE), normalizers.Prepend(SPACE)
    if kind == "llama":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    elif kind == "mistral":
        tokenizer.normalizer = normalizers.Sequence([prepend, replace])
    else:
        tokenizer.normalizer = replace
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps)
