"""What modeling files share, of blocks that each have their own form. Ships inside checkpoints.

``config.per_layer_config[i]`` says how block i differs from the others: ``skip`` names the
sub-layers that it does not have, ``num_attention_heads``, ``num_key_value_heads`` and
``intermediate_size`` are its own, and ``bias`` names the sub-layers whose output matrix has a
bias although the class gives it none.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, ClassVar

import torch
import transformers
from torch import nn
from transformers import Cache, PreTrainedConfig, cache_utils

if not hasattr(PreTrainedConfig, "per_layer_config"):
    raise ImportError(
        f"this checkpoint needs transformers 5.16 or newer, and {transformers.__version__} is here"
    )

REFUSING: Any = next(base for base in PreTrainedConfig.__mro__ if "per_layer_config" in vars(base))
"""The base of configs that does not let a setting be read that layers override."""


class NoMLP(nn.Module):
    """Stands where an MLP was: a zero for the residual addition."""

    def __init__(self, layer_idx: int) -> None:
        super().__init__()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """A scalar zero, which broadcasts over the residual stream."""
        return hidden_states.new_zeros(())


class NoAttention(nn.Module):
    """Stands where an attention was: a zero for the residual addition, and no cache entry.

    A cache that gives this layer a slot for keys would report a length of zero here, and
    positions and masks would silently be wrong; so such a cache is refused.
    """

    def __init__(self, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx

    def forward(
        self, hidden_states: torch.Tensor, *_: Any, past_key_values: Cache | None = None, **__: Any
    ) -> tuple[torch.Tensor, None]:
        """A scalar zero and no attention weights.

        Raises:
            ValueError: If the cache was made without this model's config.
        """
        if past_key_values is not None:
            check_cache(past_key_values, self.layer_idx)
        return hidden_states.new_zeros(()), None


def check_cache(cache: Cache, layer: int) -> None:
    """Refuse a cache with a slot for a layer without attention."""
    # Programs that have caches of their own, such as vLLM, may come with an older transformers.
    no_slot: type = getattr(cache_utils, "DummyLayer", type(None))
    if layer >= len(cache.layers) or not isinstance(cache.layers[layer], no_slot):
        raise ValueError(
            f"layer {layer} has no attention, but the cache has a slot for it: make the cache with "
            "DynamicCache(config=model.config) and transformers 5.23 or newer"
        )


Gating = Callable[..., torch.Tensor]
"""What an expert makes of the up projection (n, channels) of some tokens, with that of the gate
before it where it has one."""

FLAT = {"gate": "w1", "up": "v1", "down": "w2"}
"""What DBRX calls the projections of all experts, (E * channels, hidden) each, in a module within
that of the experts."""


def gating(fused: Any) -> Gating:
    """That of the experts that a module of transformers holds in a few tensors.

    Most multiply the activation of the one with the other, or have no gate. Some classes have a
    method for it, which takes both in one tensor, side by side or in turns.
    """
    if is_flat(fused):
        return partial(_activated, fused.mlp.activation_fn)
    method = getattr(type(fused), "_apply_gate", None)
    if not hasattr(fused, "gate_up_proj"):
        return partial(_alone, fused.act_fn)
    if method is None or method.__module__ != type(fused).__module__:
        return partial(_activated, fused.act_fn)
    without_weights = copy.copy(fused)
    without_weights._parameters = {}
    return partial(_by_method, without_weights, getattr(fused, "is_concatenated", True))


def _alone(act_fn: nn.Module, up: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = act_fn(up)
    return result


def _activated(act_fn: nn.Module, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = act_fn(gate) * up
    return result


def _by_method(
    experts: Any, side_by_side: bool, gate: torch.Tensor, up: torch.Tensor
) -> torch.Tensor:
    both = torch.cat([gate, up], -1) if side_by_side else torch.stack([gate, up], -1).flatten(-2)
    result: torch.Tensor = experts._apply_gate(both)
    return result


def is_flat(fused: Any) -> bool:
    """Whether experts are held as `FLAT` says."""
    return set(FLAT.values()) == {
        name for name, _ in getattr(fused, "mlp", nn.Module()).named_parameters()
    }


def transposed(fused: Any) -> bool:
    """Whether experts are held as (E, in, out): their class says so, or they fit only so."""
    told = getattr(fused, "is_transposed", None)
    if told is not None or not hasattr(fused, "gate_up_proj"):
        return bool(told)
    fits: bool = fused.gate_up_proj.shape[2] == 2 * fused.down_proj.shape[1]
    return fits


Projection = tuple[torch.Tensor, torch.Tensor | None]
"""The weights (E, out, in) and biases (E, out) of one projection of all experts."""


def projections(fused: Any) -> dict[str, Projection]:
    """The gate, if there is one, up and down projections of all experts, in views.

    A class says whether its tensors are (E, in, out), and whether rows of gate and up projection
    take turns; else all rows of the one come first.
    """
    if is_flat(fused):
        every = {name: getattr(fused.mlp, own) for name, own in FLAT.items()}
        split = {name: own.unflatten(0, (fused.num_experts, -1)) for name, own in every.items()}
        return {name: (own.mT if name == "down" else own, None) for name, own in split.items()}
    found: dict[str, Projection] = {}
    for name in ("gate_up", "up", "down"):
        weight, bias = (getattr(fused, f"{name}_proj{end}", None) for end in ("", "_bias"))
        if weight is not None:
            found[name] = (weight.mT if transposed(fused) else weight), bias
    if "gate_up" not in found:
        return found
    (weight, bias), half = found.pop("gate_up"), found["down"][0].shape[2]
    halves = slice(half), slice(half, None)
    if not getattr(fused, "is_concatenated", True):
        halves = slice(0, None, 2), slice(1, None, 2)
    both = [(weight[:, rows], None if bias is None else bias[:, rows]) for rows in halves]
    return dict(zip(("gate", "up"), both, strict=True)) | found


def of_each(hidden_states: torch.Tensor, experts: Sequence[nn.Module]) -> torch.Tensor:
    """What experts make of their own tokens (E * N, hidden), those of one after those of the other.

    Each expert is given all tokens, weighed already: a token that was not sent to it is zero, and
    so is what it would make of that.
    """
    found = []
    for expert, given in zip(experts, hidden_states.chunk(len(experts)), strict=True):
        (tokens,) = torch.where(given.any(-1))
        made = torch.zeros_like(given)
        if torch.compiler.is_compiling() or len(tokens):
            made = made.index_copy(0, tokens, expert(given[tokens]).to(made.dtype))
        found.append(made)
    return torch.cat(found)


class Expert(nn.Module):
    """One expert of a mixture: an MLP.

    Args:
        linear: Its up and down projections, and perhaps one of a gate before them, by name.
        gated: What it makes of all but the last.
    """

    def __init__(self, linear: Mapping[str, nn.Linear], gated: Gating) -> None:
        super().__init__()
        for name, module in linear.items():
            self.add_module(f"{name}_proj", module)
        self.gated = gated

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """What the expert makes of some tokens (n, hidden)."""
        *inner, down = self.children()
        result: torch.Tensor = down(self.gated(*[module(hidden_states) for module in inner]))
        return result


class Experts(nn.ModuleList):
    """The experts of one layer, as the compressed model was measured: matrices of their own.

    transformers runs a few tensors of all experts instead.

    Attributes:
        numbers: How the router numbers the experts; ``None``: one after the other. Others that it
            knows are gone, and it never chooses them.
    """

    numbers: tuple[int, ...] | None = None

    def each(self) -> list[Any]:
        """The experts in the order of their numbers."""
        return list(self)

    def forward(
        self,
        hidden_states: torch.Tensor,
        chosen: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The weighted sum of what the chosen experts (N, K) make of every token (..., hidden).

        Some classes choose none, and give each expert tokens of its own; see `of_each`.
        """
        experts = self.each()
        if chosen is None or weights is None:
            return of_each(hidden_states, experts)
        every = hidden_states.flatten(0, -2)
        total = torch.zeros_like(every)
        for number, expert in zip(self.numbers or range(len(experts)), experts, strict=True):
            tokens, places = torch.where(chosen == number)
            if torch.compiler.is_compiling() or len(tokens):
                output = expert(every[tokens]) * weights[tokens, places, None]
                total.index_add_(0, tokens, output.to(total.dtype))
        return total.view(hidden_states.shape)


class FoldedBlock(nn.Module):
    """Mixin for a block with blocks without attention ``before`` and ``after`` it."""

    before: nn.ModuleList
    after: nn.ModuleList

    def forward(self, hidden_states: torch.Tensor, *given: Any, **named: Any) -> Any:
        """As the block's own."""
        for block in self.before:
            hidden_states = block(hidden_states, *given, **named)
        hidden_states = super().forward(hidden_states, *given, **named)
        for block in self.after:
            hidden_states = block(hidden_states, *given, **named)
        return hidden_states


@cache
def folded(block: Any) -> type[nn.Module]:
    """The class of a block with others around it; it has the same name."""
    return type(block.__name__, (FoldedBlock, block), {})


@cache
def uncounted(block: Any) -> type[nn.Module]:
    """A class that computes what a block's does, and that transformers takes for no layer."""
    bases = block.__mro__[: block.__mro__.index(nn.Module)]
    every = {name: one for base in reversed(bases) for name, one in vars(base).items()}
    own = {name: one for name, one in every.items() if not name.startswith("__")}
    return type(block.__name__, (nn.Module,), own)


class LayerConfig:
    """The config as one layer sees it: its own widths, all else the model's at any time.

    A copy would miss what is set later, such as another attention implementation.
    """

    def __init__(self, config: PreTrainedConfig, widths: Mapping[str, Any]) -> None:
        self._config = config
        for name, width in widths.items():
            setattr(self, name, width)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # of copying and pickling, which ask before there is a config
            raise AttributeError(name)
        return getattr(self._config, name)


class PerLayerConfig:
    """Mixin for a model's config whose layers differ."""

    skip: ClassVar[Sequence[str]] = ()
    bias: ClassVar[Sequence[str]] = ()
    before: ClassVar[Sequence[Mapping[str, Any]]] = ()
    after: ClassVar[Sequence[Mapping[str, Any]]] = ()

    def __getattribute__(self, name: str) -> Any:
        # transformers refuses to read a setting that layers override; but the class's own
        # checks and constructors read it, and here it is what every other layer has. Only `super`
        # is something that torch.compile follows into a graph.
        names = super(REFUSING, self).__getattribute__("attribute_map")
        return super(REFUSING, self).__getattribute__(names.get(name, name))
