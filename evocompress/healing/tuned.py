"""Treatments of the model as it stands: fine-tuned for a while, in place."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import cycle

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from evocompress.core.config import HealConfig
from evocompress.core.finetuning import Recipe
from evocompress.healing.masters import Masters
from evocompress.healing.student import zero_masks
from evocompress.models.loading import LoadedModel, require_next_token

Treatments = Mapping[str, Callable[[], AbstractContextManager[None]]]
"""By the name that requests give it, what changes the model and then puts back what it was."""


def fine_tunings(loaded: LoadedModel, sequences: Tensor, recipes: Collection[Recipe]) -> Treatments:
    """The treatments of some recipes.

    They train, in whatever state the model is, on sequences (N, S) that no candidate is measured
    on.
    """
    if recipes:
        require_next_token(loaded, "fine-tuning candidates")
    return {recipe.treatment: partial(tuned, loaded, sequences, recipe) for recipe in recipes}


@contextmanager
def tuned(loaded: LoadedModel, sequences: Tensor, recipe: Recipe) -> Iterator[None]:
    """Fine-tunes the model as it stands on sequences (N, S), and gives it back as it was.

    Afterwards the model has the very tensors that it had.
    """
    with _copied_weights(loaded.model):
        _train(loaded, _lessons(sequences, recipe.tokens), recipe.learning_rate)
        yield


@contextmanager
def _copied_weights(model: nn.Module) -> Iterator[None]:
    """Gives the model copies of its weights for a while: they may be files, or shared."""
    originals = {parameter: parameter.data for parameter in model.parameters()}
    try:
        for parameter, data in originals.items():
            parameter.data = data.clone()
        yield
    finally:
        for parameter, data in originals.items():
            parameter.grad = None
            parameter.data = data


def _train(loaded: LoadedModel, lessons: Iterable[Tensor], learning_rate: float) -> None:
    """One optimizer step for each lesson (1, S), in the model's own tensors."""
    model = loaded.model
    model.requires_grad_(True)
    masters = Masters(model, zero_masks(model, loaded.family), HealConfig())
    try:
        for ids in lessons:
            with torch.enable_grad():
                torch.autograd.backward(_loss(loaded, ids.to(model.device)))
            masters.collect_gradients()
            masters.step(learning_rate)
    finally:
        model.requires_grad_(False)


def _lessons(sequences: Tensor, tokens: int) -> Iterator[Tensor]:
    """Sequences (1, S) with this number of tokens in all; a single last token teaches nothing."""
    for sequence in cycle(sequences):
        if tokens < 2:
            return
        yield sequence[None, :tokens]
        tokens -= len(sequence)


def _loss(loaded: LoadedModel, ids: Tensor) -> Tensor:
    """The mean cross-entropy of every next token in `ids` (1, S)."""
    hidden = loaded.family.hidden_states(loaded.model, ids[:, :-1])
    logits = loaded.family.outputs(loaded.model, hidden)
    return cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
