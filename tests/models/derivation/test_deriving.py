"""Derived families against the classes themselves: narrower ones, and ones without a part."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from evocompress.core.types import Axis
from evocompress.models.families import SubLayerName
from evocompress.models.families.derivation import derived
from evocompress.models.families.derivation.defaults import default_config
from evocompress.models.families.derivation.derived import Derived, derive
from evocompress.models.families.derivation.from_config import language_class
from evocompress.models.families.derivation.shrink import random_model, shrunk
from evocompress.models.families.derivation.structure import Unclear

IDS = torch.arange(3, 15)[None]

REMOVED = ["cwm", "glm4", "phi", "biogpt", "gptj", "paligemma", "muse_glimmer"]


def made(name: str, **settings: Any) -> tuple[Derived, Any]:
    """The family of a type, and a tiny model of it."""
    config = CONFIG_MAPPING[name](**settings)
    cls = language_class(config)
    return derive(cls, config), random_model(cls, shrunk(config, 2))


def kept_rows(axes: tuple[Axis, ...], kept: dict[Axis, tuple[int, int]], size: int) -> list[int]:
    """The rows of what stays, where ``kept`` gives the number of all and of the first that stay."""
    rows, start = [], 0
    for axis in axes:
        every, stay = kept[axis]
        rows += range(start, start + stay * size)
        start += every * size
    return rows


@torch.no_grad()
def narrower(model: Any, family: Derived, heads: int, kv_heads: int) -> tuple[Tensor, Tensor]:
    """Logits of the class with fewer heads in its config, and of the model with those silenced."""
    config: Any = copy.deepcopy(model.config)
    dense, size = (config.num_attention_heads, config.num_key_value_heads), config.head_dim
    kept: dict[Axis, tuple[int, int]] = {
        "query": (dense[0], heads),
        "key": (dense[1], kv_heads),
        "value": (dense[1], kv_heads),
    }
    config.num_attention_heads, config.num_key_value_heads = heads, kv_heads
    narrow = random_model(type(model), config)
    state = model.state_dict()
    for index, block in enumerate(family.blocks(model)):
        for matrix in family.attention.matrices:
            weight = block.get_parameter(f"{matrix.path}.weight")
            name = f"{family.block_names[index]}.{matrix.path}"
            if matrix.rows:
                rows = kept_rows(matrix.rows, kept, size)
                state[f"{name}.weight"] = weight[rows]
                if f"{name}.bias" in state:
                    state[f"{name}.bias"] = state[f"{name}.bias"][rows]
            else:
                columns = kept_rows(matrix.columns, kept, size)
                state[f"{name}.weight"] = weight[:, columns]
                weight[:, len(columns) :] = 0
    narrow.load_state_dict(state)
    return narrow(IDS).logits, model(IDS).logits


@pytest.mark.parametrize("name", ["cwm", "glm4", "ernie4_5", "seed_oss"])
def test_fewer_heads_are_the_silenced_ones(name: str) -> None:
    """The class with half the heads computes what the model does with the others silenced."""
    family, model = made(name)
    assert not family.limits
    heads, kv_heads = model.config.num_attention_heads, model.config.num_key_value_heads
    narrow, silent = narrower(model, family, heads // 2, kv_heads // 2)
    torch.testing.assert_close(narrow, silent, rtol=1e-9, atol=1e-9)


def silence_columns(module: nn.Module) -> None:
    """Make a linear module yield zero."""
    for parameter in module.parameters():
        parameter.zero_()


@pytest.mark.parametrize("name", REMOVED)
@pytest.mark.parametrize("sublayer", ["attention", "mlp"])
@torch.no_grad()
def test_a_removed_part_adds_nothing(name: str, sublayer: SubLayerName) -> None:
    """A model without a part computes what it does with that part's last matrix at zero."""
    family, model = made(name)
    silent = copy.deepcopy(model)
    block = family.blocks(model)[1]
    for path, module in family.replacements(block, sublayer).items():
        block.set_submodule(path, module)
    silence_columns(family.blocks(silent)[1].get_submodule(family.output(sublayer).path))
    torch.testing.assert_close(model(IDS).logits, silent(IDS).logits, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["cohere_compass_text", "dbrx", "dots1", "lfm2_moe"])
def test_a_default_config_that_leaves_something_open_is_completed(name: str) -> None:
    """Without what is told beside, the class cannot even be made."""
    plain, whole = CONFIG_MAPPING[name](), default_config(name)
    cls = MODEL_FOR_CAUSAL_LM_MAPPING[type(plain)]
    with pytest.raises((AttributeError, LookupError, TypeError)):
        derive(cls, plain)
    family = derive(cls, whole)
    assert any(kind.heads and kind.parts["attention"].settings for kind in family.kinds)


def test_experts_in_flat_matrices_are_known_as_experts() -> None:
    """They are no linear modules; those that are made of them are the mixture's, and counted."""
    family = derive(language_class(config := default_config("dbrx")), config)
    assert family.limits == []
    assert family.mixture is not None and family.mixture.count == config.ffn_config.moe_num_experts
    assert {matrix.expert for matrix in family.mlp.matrices} == {"ffn.experts.0"}


@pytest.mark.parametrize("name", ["cpmant", "git"])
def test_blocks_may_lie_in_a_module_that_takes_hidden_states(name: str) -> None:
    """The one around it takes tokens, and may add some of its own."""
    family = derive(language_class(config := default_config(name)), config)
    assert len(family.order) == config.num_hidden_layers


def test_attention_with_a_stored_mask_is_seen_to_look_back_only() -> None:
    """Masks are buffers there; a tiny model in which they were noise would look ahead."""
    family = derive(language_class(config := default_config("minimax")), config)
    assert not family.two_way


def test_a_tiny_model_that_is_large_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derived, "MOST_PARAMETERS", 10_000)
    config = default_config("cwm")
    with pytest.raises(Unclear, match=r"too many to try it: .*weight stays large"):
        derive(language_class(config), config)
