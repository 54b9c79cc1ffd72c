from __future__ import annotations

from pathlib import Path

import pytest
import torch
from export_cases import mixed_candidate
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

import evocompress.hf  # noqa: F401
from evocompress.export import materialize
from evocompress.models.loading import LoadedModel
from evocompress.testing.formats import candidate_of, with_bias
from evocompress.testing.plain_library import PlainLibrary

NEW_TOKENS = 12
PADDING = 5


@pytest.fixture(params=["mixed", "uneven"])
def model(loaded: LoadedModel, request: pytest.FixtureRequest, tmp_path: Path) -> PreTrainedModel:
    """Each layer with its own widths, or without attention in block 0.

    In the latter the first cache slot is the missing one.
    """
    if not loaded.family.task.causal:
        pytest.skip("only causal models have a cache")
    uneven = candidate_of(loaded, with_bias(loaded))
    candidate = mixed_candidate(loaded) if request.param == "mixed" else uneven
    out = materialize(loaded, PlainLibrary(loaded), candidate, tmp_path / "out")
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(out)
    model.generation_config.update(pad_token_id=0, eos_token_id=None, do_sample=False)
    model.generation_config.max_new_tokens = NEW_TOKENS
    return model


def new_tokens(model: PreTrainedModel, ids: Tensor, **settings: object) -> Tensor:
    mask = torch.ones_like(ids)
    return model.generate(ids, attention_mask=mask, **settings)[:, ids.shape[1] :]


def test_greedy_tokens_are_the_same_with_and_without_cache(
    model: PreTrainedModel, ids: Tensor
) -> None:
    plain = new_tokens(model, ids, use_cache=False)
    assert plain.shape == (2, NEW_TOKENS)
    assert torch.equal(new_tokens(model, ids), plain)
    assert torch.equal(new_tokens(model, ids, cache_implementation="static"), plain)


def test_left_padding_changes_nothing(model: PreTrainedModel, ids: Tensor) -> None:
    mask = torch.ones_like(ids)
    mask[0, :PADDING] = 0
    padded = model.generate(ids, attention_mask=mask)[0, ids.shape[1] :]
    assert torch.equal(padded, new_tokens(model, ids[:1, PADDING:])[0])


def test_manual_cached_forward_equals_one_pass(model: PreTrainedModel, ids: Tensor) -> None:
    whole = model(ids).logits
    first = model(ids[:, :10], use_cache=True)
    rest = model(ids[:, 10:], past_key_values=first.past_key_values)
    torch.testing.assert_close(rest.logits, whole[:, 10:], rtol=0, atol=1e-4)


def test_cache_made_without_the_config_is_refused(model: PreTrainedModel, ids: Tensor) -> None:
    with pytest.raises(ValueError, match=r"layer \d has no attention"):
        model(ids, past_key_values=DynamicCache(), use_cache=True)
