"""A family made for a model whose type has no entry of its own."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from evocompress.core.errors import ModelError, one_line
from evocompress.core.types import Architecture
from evocompress.core.widths import Widths
from evocompress.models.derivation.projections import matrices, shape, with_channels, with_heads
from evocompress.models.derivation.proof import Settings, proven
from evocompress.models.derivation.shrink import VOCABULARY, random_model, shrunk
from evocompress.models.derivation.structure import Branch, Unclear, structure
from evocompress.models.derivation.tracing import Example, by_name
from evocompress.models.families.base import Family
from evocompress.models.families.branches import ABSENT, Attributes, Matrix, SubLayer, SubLayerName
from evocompress.models.families.logits import logits_of
from evocompress.models.families.uneven import head_shape

LENGTH = 9
"""Tokens of the sequences that are tried."""

FAILURES = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What a model raises that does not run."""

CAP_KEY = "final_logit_softcapping"


@dataclass(frozen=True)
class Part:
    """A sub-layer as it was derived.

    Attributes:
        branch: Its modules.
        matrices: Its linear ones.
        settings: What they are told when the width changes; ``None`` where it cannot.
        reason: Why it cannot; empty where it can.
    """

    branch: Branch
    matrices: tuple[Matrix, ...]
    settings: Settings | None = None
    reason: str = ""

    @property
    def sublayer(self) -> SubLayer:
        """The same in the words of families."""
        return SubLayer(
            matrices=self.matrices,
            identity_modules=self.branch.identities,
            zero_module=self.branch.core[-1],
            narrowable=self.settings is not None,
        )


class Derived(Family):
    """The layout of one model class, read off a tiny model of it and proved on that.

    Args:
        model_type: Of the config.
        layers_path: Of the list of blocks.
        norm_path: Of the norm behind them.
        cap_key: Of the bound of logits.
        parts: The sub-layers of a block in order.
        shared: Norms that both read.
        classes: {module path: class} of a block, which all must have.
    """

    def __init__(
        self,
        model_type: str,
        layers_path: str,
        norm_path: str,
        cap_key: str,
        parts: Mapping[SubLayerName, Part],
        shared: tuple[str, ...],
        classes: Mapping[str, str],
    ) -> None:
        self.model_type = model_type
        self.layers_path = layers_path
        self.norm_path = norm_path
        self.cap_key = cap_key
        self.parts = parts
        self.shared = shared
        self.classes = classes
        self.attention = parts["attention"].sublayer if "attention" in parts else ABSENT
        self.mlp = parts["mlp"].sublayer if "mlp" in parts else ABSENT

    @property
    def limits(self) -> list[str]:
        """What cannot be done to the model, and why."""
        return [part.reason for part in self.parts.values() if part.reason]

    def check(self, model: PreTrainedModel) -> None:
        """Refuse a model with a block that is built otherwise than those that were tried."""
        for index, block in enumerate(self.blocks(model)):
            if module_classes(block) != self.classes:
                raise ModelError(
                    f"block {index} of this {self.model_type} model has other modules than the "
                    "first one; blocks of several kinds are not supported for this type"
                )

    def architecture(self, model: PreTrainedModel) -> Architecture:
        """See `Family.architecture`; norms that both sub-layers read stay with the model."""
        found = super().architecture(model)
        blocks = self.blocks(model)
        extra = sum(
            p.numel()
            for b in blocks
            for path in self.shared
            for p in b.get_submodule(path).parameters()
        )
        return replace(found, outer_params=found.outer_params + extra)

    def replacements(self, block: nn.Module, sublayer: SubLayerName) -> dict[str, nn.Module]:
        """See `Family.replacements`."""
        return self.parts[sublayer].branch.removal()

    def narrowing(self, block: nn.Module, sublayer: SubLayerName, widths: Widths) -> Attributes:
        """See `Family.narrowing`."""
        part = self.parts[sublayer]
        assert part.settings is not None
        return part.settings.attributes(block, part.branch, widths)


class ToBeDerived(Family):
    """Stands for the family of a language model until its config has been read.

    Args:
        model_type: Of the config.
    """

    def __init__(self, model_type: str) -> None:
        self.model_type = model_type


@cache
def _remembered(cls: type[PreTrainedModel], settings: str) -> Derived | str:
    """The family of a class with a config, as text; or why there is none."""
    assert cls.config_class is not None
    config = cls.config_class.from_dict(json.loads(settings))
    try:
        return derive(cls, config)
    except Unclear as reason:
        return str(reason)
    except FAILURES as error:
        return f"a tiny model of it does not run ({one_line(error)})"


def derived(cls: type[PreTrainedModel], config: PreTrainedConfig) -> Derived:
    """The family of a model whose type has none; found once for a class with a config.

    Raises:
        ModelError: It cannot be derived; the message says which part is the reason.
    """
    key: Any = cls
    found = _remembered(key, config.to_json_string(use_diff=False))
    if isinstance(found, str):
        raise ModelError(
            f"models of type {config.model_type!r} have no family of their own, and none can be "
            f"derived: {found} (docs/families.md says what blocks must be like)"
        )
    return found


def module_classes(block: nn.Module) -> dict[str, str]:
    """{module path: class} of a block; what has no parameters need not be alike."""
    return {
        path: type(module).__name__
        for path, module in block.named_modules()
        if path and any(True for _ in module.parameters())
    }


def derive(cls: type[PreTrainedModel], config: PreTrainedConfig) -> Derived:
    """The family of a model class with a config.

    Args:
        cls: Of a causal language model.
        config: Of the model; its sizes do not matter.

    Raises:
        Unclear: It is built in a way that is not understood.
    """
    with torch.no_grad():
        try:
            return _tried(cls, shrunk(config, _layers(config)))
        except FAILURES:
            # Rotary embeddings with a number for each pair of dimensions know only one width.
            return _tried(cls, shrunk(config, _layers(config), narrow_heads=False))


def _tried(cls: type[PreTrainedModel], small: PreTrainedConfig) -> Derived:
    """The family of a model class, read off a random model with a small config."""
    model = random_model(cls, small)
    ids = torch.randint(3, VOCABULARY, (1, LENGTH), generator=torch.Generator().manual_seed(0))
    path, examples = _blocks(model, ids)
    return _derived(model, path, examples, ids)


def _layers(config: PreTrainedConfig) -> int:
    """How many of the first layers have every kind of attention that there is; at least two."""
    kinds = getattr(config, "layer_types", None) or ["", ""]
    first = {kind: kinds.index(kind) for kind in kinds}
    return max(2, *(index + 1 for index in first.values()))


def _blocks(model: PreTrainedModel, ids: Tensor) -> tuple[str, list[Example]]:
    """The path of the list of blocks, and each with what it is called with."""
    count = model.config.num_hidden_layers
    for path, blocks in model.named_modules():
        if isinstance(blocks, nn.ModuleList) and len(blocks) == count:
            calls = _arguments(model, blocks, ids)
            if list(calls) == list(range(count)):
                return path, [_example(blocks[index], calls[index]) for index in calls]
    raise Unclear("no list of blocks that are run one after the other")


def _arguments(
    model: PreTrainedModel, blocks: nn.ModuleList, ids: Tensor
) -> dict[int, dict[str, Any]]:
    """What each block is called with, in the order of the calls."""
    found: dict[int, dict[str, Any]] = {}

    def note(index: int, module: nn.Module, given: Any, named: Any) -> None:
        found[index] = by_name(module, given, named)

    hooks = [
        block.register_forward_pre_hook(partial(note, index), with_kwargs=True)
        for index, block in enumerate(blocks)
    ]
    model(input_ids=ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


def _example(block: nn.Module, arguments: dict[str, Any]) -> Example:
    first = next(iter(inspect.signature(block.forward).parameters))
    hidden = arguments.pop(first)
    if not (isinstance(hidden, Tensor) and hidden.ndim == 3):
        raise Unclear("a block is not called with the hidden state first")
    if not isinstance(block(hidden, **arguments), Tensor):
        raise Unclear("a block returns more than the hidden state")
    return Example(block, hidden, arguments)


def _derived(model: PreTrainedModel, path: str, examples: list[Example], ids: Tensor) -> Derived:
    """The family, where all blocks are alike."""
    found = [_parts(example, model.config) for example in examples]
    parts, shared = found[0]
    if any(other != found[0] for other in found):
        raise Unclear("its blocks are of several kinds")
    classes = module_classes(examples[0].block)
    return Derived(
        model.config.model_type,
        path,
        _norm(model, examples[-1], ids),
        _cap(model, ids),
        parts,
        shared,
        classes,
    )


def _parts(
    example: Example, config: PreTrainedConfig
) -> tuple[dict[SubLayerName, Part], tuple[str, ...]]:
    """The sub-layers of a block with what can be done to them."""
    found = structure(example)
    return {branch.kind: _part(example, branch, config) for branch in found.branches}, found.shared


def _part(example: Example, branch: Branch, config: PreTrainedConfig) -> Part:
    linear = matrices(example, branch)
    heads, kv_heads, head_dim = head_shape(config, 0)
    if branch.kind == "attention":
        axes = with_heads(example, linear, heads, kv_heads, head_dim)
        what = "heads"
    else:
        axes = with_channels(example, linear)
        what = "channels"
    if axes is None:
        names = ", ".join(matrix.path for matrix in linear)
        return Part(
            branch,
            tuple(linear),
            reason=f"{what} cannot be cut: {names} are built otherwise than supported",
        )
    channels = shape(example, axes[-1])[1] if branch.kind == "mlp" else 0
    settings = proven(example, branch, axes, Widths(heads, kv_heads, head_dim, channels))
    reason = (
        ""
        if settings
        else f"{what} cannot be cut: a narrower {branch.core[0]} is not the silenced one"
    )
    return Part(branch, tuple(axes), settings, reason)


def _norm(model: PreTrainedModel, last: Example, ids: Tensor) -> str:
    """The path of the module that reads what the last block yields."""
    output = last.run()
    found: list[str] = []

    def note(path: str, _: nn.Module, given: Any) -> None:
        if (
            given
            and isinstance(given[0], Tensor)
            and given[0].shape == output.shape
            and torch.equal(given[0], output)
        ):
            found.append(path)

    hooks = [m.register_forward_pre_hook(partial(note, p)) for p, m in model.named_modules()]
    model(input_ids=ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return (
        found[0]
        if found and model.get_submodule(found[0]) is not model.get_output_embeddings()
        else ""
    )


def _cap(model: PreTrainedModel, ids: Tensor) -> str:
    """The key of the bound of the logits.

    Raises:
        Unclear: They are something else of the hidden states than what the head makes of them.
    """
    states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    wanted = model(input_ids=ids, use_cache=False).logits
    for key in ("", CAP_KEY):
        if hasattr(model.config, key or "model_type") and torch.allclose(
            logits_of(model, states, key), wanted, rtol=1e-9, atol=1e-9
        ):
            return key
    raise Unclear("its logits are not what its head makes of the hidden states")
