"""Byte-level BPE tokenizers of the kinds that llama.cpp tells apart, trained on a few lines."""

from __future__ import annotations

from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from evocompress.export.gguf_tokenizer import SPLITS
from evocompress.testing.tiny import END_OF_TEXT

TEXTS = (
    "The quick brown fox doesn't jump over 1234567 lazy dogs.",
    "It's 3.14159, they'll say;  two  spaces and\ttabs\n\n  and lines",
    "Ünïcödé — “quotes” … 漢字 🙂 I'M SHOUTING, WE'RE NOT",
    "def f(x):\n    return x**2 + 10_000 # comment\n",
)
"""Text on which the kinds differ: digits, contractions, spaces and other scripts."""


def trained_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of at most 600 tokens.

    Args:
        kind: ``gpt-2``, ``smollm``, ``llama-bpe`` or ``qwen2``.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _pre_tokenizer(kind)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT
    )


def _pre_tokenizer(kind: str) -> Any:
    if kind == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if kind == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    pattern = next(pattern for pattern, name in SPLITS.items() if name == kind)
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([split, last])
