"""The special tokens around every sequence, as the tokenizer puts them around a text."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from evocompress.core.errors import DataError
from evocompress.models.loading import LoadedModel

Opening = Literal["auto"] | bool
"""Whether sequences begin with the beginning-of-text token; ``auto``: as the tokenizer does it."""


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """What a tokenizer puts before and after every text, such as ``[CLS]`` and ``[SEP]``.

    Raises:
        DataError: It is not to be told, since the tokenizer cannot encode a letter.
    """
    whole: Any = tokenizer("a")["input_ids"]
    bare: Any = tokenizer("a", add_special_tokens=False)["input_ids"]
    places = range(len(whole) - len(bare) + 1)
    begin = next((i for i in places if bare and whole[i : i + len(bare)] == bare), None)
    if begin is None:
        raise DataError(
            f"the tokenizer encodes 'a' as {whole}, without special tokens as {bare}: it does not "
            "fit its vocabulary, replace its files"
        )
    return list(whole[:begin]), list(whole[begin + len(bare) :])


def surroundings(loaded: LoadedModel, opening: Opening) -> tuple[Tensor, Tensor]:
    """The tokens that begin and those that end every sequence of a model, 1-D, int64.

    A causal model's sequences have none at the end, where its text would go on.

    Raises:
        DataError: The model cannot have what `opening` asks for.
    """
    assert loaded.tokenizer is not None
    causal = loaded.family.task.causal
    if not causal and opening != "auto":
        raise DataError(
            f"calibration.bos={str(opening).lower()}: {loaded.source} is a model for "
            f"{loaded.family.task.name}, whose sequences always have the tokenizer's special "
            "tokens: leave it at auto"
        )
    before, after = special_tokens(loaded.tokenizer)
    if opening is True and not before:
        before = _beginning_of_text(loaded)
    begin = torch.tensor([] if opening is False else before, dtype=torch.int64)
    padding = skipped(loaded)
    while after and after[-1] == padding:
        after = after[:-1]
    end = torch.tensor([] if causal else after, dtype=torch.int64)
    check_vocabulary("what the tokenizer puts around a text", torch.cat([begin, end]), loaded)
    return begin, end


def _beginning_of_text(loaded: LoadedModel) -> list[int]:
    token = loaded.tokenizer.bos_token_id if loaded.tokenizer else None
    if token is None:
        raise DataError(
            f"calibration.bos=true: the tokenizer of {loaded.source} has no beginning-of-text "
            "token: leave it at auto"
        )
    return [int(token)]


def vocabulary_size(loaded: LoadedModel) -> int:
    """How many tokens the model has an embedding for."""
    # A head has as many rows, where there is one over the vocabulary.
    embedding: Any = loaded.model.get_input_embeddings()
    return int(embedding.weight.shape[0])


def skipped(loaded: LoadedModel) -> int | None:
    """The padding token of a decoder's classifier, which looks for the last token before it."""
    task = loaded.family.task
    if task.causal or not task.cached or task.compared == "embeddings":
        return None
    padding: int | None = loaded.model.config.pad_token_id
    return padding


def check_padding(what: str, sequences: Tensor, loaded: LoadedModel) -> None:
    """Refuse sequences (N, S) at whose end a decoder's classifier would not look."""
    padding = skipped(loaded)
    if padding is not None and bool((sequences[:, -1] == padding).any()):
        raise DataError(
            f"{what} has sequences that end with the padding token {padding}, which "
            f"{loaded.source} skips: take other text, or another calibration.length"
        )


def check_vocabulary(what: str, tokens: Tensor, loaded: LoadedModel) -> None:
    """Refuse token ids that the model has no embedding for; errors call the data `what`."""
    if not tokens.numel():
        return
    vocabulary = vocabulary_size(loaded)
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= vocabulary:
        raise DataError(
            f"{what} has token ids from {low} to {high}, but {loaded.source} has only "
            f"{vocabulary} tokens: was it made for another tokenizer?"
        )
