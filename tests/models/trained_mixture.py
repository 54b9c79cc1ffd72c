"""A tiny mixture of experts that has learnt a language, in seconds and always the same one.

The language has words of four dialects. Each has letters of its own, one mostly followed by the
same other one, and some dialects are much rarer than others: so experts are used unequally, and
to lose one costs something.
"""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedModel

from evocompress.models.checkpoints import quiet_transformers
from evocompress.models.loading import LoadedModel, loaded
from evocompress.testing.tiny import CONTEXT, END_OF_TEXT_ID, tiny_tokenizer

DIALECTS = ("abcdef", "ghijkl", "mnopqr", "stuvwx")
SHARES = (0.5, 0.3, 0.15, 0.05)
WORD = 12
REGULAR = 0.85
"""How often a letter is followed by the next one of its dialect, not by any."""

EXPERTS, ACTIVE, LAYERS, HIDDEN, CHANNELS = 6, 2, 2, 32, 32
STEPS, BATCH, LENGTH, RATE = 150, 16, 32, 5e-3

BALANCE = 0.03
"""Weight of the loss that keeps routers from a few favourites; so small that they have some."""


def dialect_text(words: int, seed: int) -> str:
    """Words of the language, separated by blanks."""
    rng = np.random.default_rng(seed)
    return " ".join(_word(DIALECTS[rng.choice(len(SHARES), p=SHARES)], rng) for _ in range(words))


def trained_mixture() -> LoadedModel:
    """The trained model with its tokenizer; it is called ``tiny:trained-mixture``."""
    return loaded(_trained(), tiny_tokenizer(), "tiny:trained-mixture")


def trained_checkpoint(folder: Path) -> Path:
    """Save the trained model and its tokenizer into `folder`, and return it."""
    with quiet_transformers():
        _trained().save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
    return folder


def _word(letters: str, rng: np.random.Generator) -> str:
    places = [int(rng.integers(len(letters)))]
    for _ in range(WORD - 1):
        regular = rng.random() < REGULAR
        places.append((places[-1] + 1) % len(letters) if regular else int(rng.integers(6)))
    return "".join(letters[place] for place in places)


def _trained() -> PreTrainedModel:
    """A copy: what is done to one does not change the next."""
    return copy.deepcopy(_train())


@cache
def _train() -> PreTrainedModel:
    config = MixtralConfig(
        vocab_size=256,
        hidden_size=HIDDEN,
        intermediate_size=CHANNELS,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=EXPERTS,
        num_experts_per_tok=ACTIVE,
        max_position_embeddings=CONTEXT,
        router_aux_loss_coef=BALANCE,
        bos_token_id=END_OF_TEXT_ID,
        eos_token_id=END_OF_TEXT_ID,
    )
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        model = MixtralForCausalLM(config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
        for ids in _batches():
            loss = model(ids, labels=ids, output_router_logits=True).loss
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    model.requires_grad_(False)
    model.eval()
    return model


def _batches() -> list[Tensor]:
    """Token ids (`BATCH`, `LENGTH`) of each step."""
    count = STEPS * BATCH * LENGTH
    text = dialect_text(count // (WORD + 1) + 1, seed=1)
    ids = torch.tensor(tiny_tokenizer()(text, verbose=False)["input_ids"][:count])
    return list(ids.view(STEPS, BATCH, LENGTH))
