"""What lies behind the blocks of a language model: a norm, the head, and what scales logits."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from functools import partial
from inspect import signature
from itertools import permutations
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from evocompress.models.families.base import Family
from evocompress.models.families.derivation.shrink import HIDDEN_KEYS, random_model
from evocompress.models.families.derivation.structure import Unclear
from evocompress.models.families.derivation.tracing import FAILURES, output_changed
from evocompress.models.families.logits import LogitKeys, logits_of
from evocompress.models.families.uneven import text_config

CLOSE = 1e-9
"""What rounding in float64 explains."""

CLOSE_IN_FLOAT32 = 1e-5
"""The same where a model turns its logits into float32."""

CAP_KEYS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


def norm_path(model: PreTrainedModel, output: Tensor, inputs: Mapping[str, Any]) -> str:
    """The path of the module that reads what the last block yields; empty where that is the head.

    Args:
        model: A tiny one.
        output: Of its last block.
        inputs: What it was made of.
    """
    found: list[str] = []

    def note(path: str, _: nn.Module, given: Any) -> None:
        if given and isinstance(given[0], Tensor) and _same(given[0], output):
            found.append(path)

    hooks = [m.register_forward_pre_hook(partial(note, p)) for p, m in model.named_modules()]
    model(**inputs)
    for hook in hooks:
        hook.remove()
    if not found or model.get_submodule(found[0]) is model.get_output_embeddings():
        return ""
    return found[0]


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def logit_keys(model: PreTrainedModel, body: str, ids: Tensor) -> LogitKeys:
    """The keys of the config by whose values logits are scaled and bounded.

    A key is that of a factor only if logits follow where its value is another one.

    Args:
        model: A tiny one.
        body: The path of the part that makes its hidden states.
        ids: Tokens.

    Raises:
        Unclear: Logits are something else of the hidden states.
    """
    states, wanted = _states_and_logits(model, body, ids)
    for keys in _possible(model, logits_of(model, states), wanted):
        if _gives(model, states, wanted, keys) and _follow(model, body, ids, keys):
            return keys
    raise Unclear("its logits are not what its head makes of the hidden states")


def _possible(model: PreTrainedModel, products: Tensor, wanted: Tensor) -> Iterator[LogitKeys]:
    """What may scale the products of the head, by the values in the config."""
    config = text_config(model.config)
    caps = {key: getattr(config, key) for key in CAP_KEYS if getattr(config, key, None)}
    yield LogitKeys()
    yield from (LogitKeys(key) for key in CAP_KEYS if hasattr(config, key))
    if products.shape != wanted.shape:
        return
    yield from _scaled(config, (wanted.sum() / products.sum()).item())
    for key, cap in caps.items():
        before = cap * torch.atanh(wanted / cap)
        for keys in _scaled(config, (before.sum() / products.sum()).item()):
            yield keys._replace(cap=key)


def _scaled(config: PreTrainedConfig, factor: float) -> Iterator[LogitKeys]:
    """The keys whose values, or quotients of them, are a factor."""
    numbers = {
        key: value
        for key, value in vars(config).items()
        if isinstance(value, int | float) and not isinstance(value, bool) and value
    }
    for key, value in numbers.items():
        if _near(value, factor):
            yield LogitKeys(factors=(key,))
        if _near(1 / value, factor):
            yield LogitKeys(divisors=(key,))
    for one, other in permutations(numbers, 2):
        if _near(numbers[one] / numbers[other], factor):
            yield LogitKeys(factors=(one,), divisors=(other,))


def _near(one: float, other: float) -> bool:
    return abs(one - other) <= CLOSE * abs(other)


def _states_and_logits(model: PreTrainedModel, body: str, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The hidden states that a part makes within a model, and the logits."""
    states: list[Tensor] = []
    with output_changed(model.get_submodule(body), lambda output: states.append(output[0])):
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return states[-1], logits


def _gives(model: PreTrainedModel, states: Tensor, wanted: Tensor, keys: LogitKeys) -> bool:
    found = logits_of(model, states, keys)
    return _near_all(found, wanted, CLOSE if wanted.dtype == torch.float64 else CLOSE_IN_FLOAT32)


def _near_all(found: Tensor, wanted: Tensor, close: float) -> bool:
    return found.shape == wanted.shape and torch.allclose(
        found.double(), wanted.double(), rtol=close, atol=close
    )


def _follow(model: PreTrainedModel, body: str, ids: Tensor, keys: LogitKeys) -> bool:
    """Whether logits follow where the values of keys are others; not those of what has no others.

    The number of layers may be that of a factor by chance, and no other goes with its lists.
    """
    try:
        return all(
            _gives(other, *_states_and_logits(other, body, ids), keys)
            for other in _others(model, keys)
        )
    except FAILURES:
        return False


def _others(model: PreTrainedModel, keys: LogitKeys) -> Iterator[PreTrainedModel]:
    """Models with another value of each key that is no size of the model."""
    for key in {*keys.factors, *keys.divisors} - {*HIDDEN_KEYS}:
        config = copy.deepcopy(model.config)
        text = text_config(config)
        setattr(text, key, 2 * getattr(text, key))
        yield random_model(type(model), config)


def check_outputs(family: Family, model: PreTrainedModel, ids: Tensor) -> None:
    """A classifier's outputs must be what its family makes of the hidden states.

    Raises:
        Unclear: They are something else.
    """
    if family.task.compared == "embeddings":
        return
    found = family.outputs(model, family.hidden_states(model, ids))
    if not torch.allclose(found, model(input_ids=ids, use_cache=False).logits.to(found), atol=1e-5):
        raise Unclear("its outputs are not what its classifier makes of the last token's state")


def body_of(model: PreTrainedModel, layers_path: str) -> nn.Module:
    """The innermost module of a model around a list of blocks that takes tokens."""
    return model.get_submodule(next(_around(model, layers_path)))


def body_path(model: PreTrainedModel, layers_path: str, ids: Tensor) -> str:
    """The path of the part of a language model that makes the hidden states that its head reads.

    It is the innermost one around the blocks that makes of tokens alone what it does within the
    model. That may give it more, as positions that are counted from one.

    Args:
        model: A tiny one.
        layers_path: Of its list of blocks.
        ids: Tokens.

    Raises:
        Unclear: There is none.
    """
    for path in filter(None, _around(model, layers_path)):
        body = model.get_submodule(path)
        alone: Any = body(input_ids=ids, use_cache=False)
        states = getattr(alone, "last_hidden_state", None)
        if states is not None and _near_all(states, _states_and_logits(model, path, ids)[0], CLOSE):
            return path
    raise Unclear("no part of it makes of tokens alone the hidden states that its head reads")


def _around(model: PreTrainedModel, layers_path: str) -> Iterator[str]:
    """The paths of the modules around a list of blocks that take tokens, the innermost first.

    Blocks may lie in a module within that takes hidden states; the last one is the model.
    """
    path = layers_path
    while path:
        path = path.rpartition(".")[0]
        if "input_ids" in signature(model.get_submodule(path).forward).parameters:
            yield path
