"""What an estimate is, and the residual stream that several of them look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from evocompress.compression.live_model import LiveModel
from evocompress.core.types import Candidate, Level
from evocompress.models.families import Family
from evocompress.models.families.derivation.tracing import replaced
from evocompress.models.families.stand_ins import run_block

Rows = dict[str, tuple[float, ...]]
"""For each unit that the estimate is about its values."""


@dataclass(frozen=True, eq=False)
class Subject:
    """What an estimate is about.

    Attributes:
        live: The model.
        micro_batches: Token ids (b, S) of each micro-batch, on the model's device.
        candidate: Where to estimate.
        levels: {unit: the levels that are asked about}, for the estimates that are about
            levels.
        dense_states: The dense model's final hidden states (`Task.states`) by a sequence's bytes:
            what is there need not be computed again.
    """

    live: LiveModel
    micro_batches: Sequence[Tensor]
    candidate: Candidate
    levels: Mapping[str, Sequence[Level]] = field(default_factory=dict)
    dense_states: dict[bytes, Tensor] = field(default_factory=dict)


Estimator = Callable[[Subject], Rows]
"""Estimates at a candidate, which the live model may be left as; the caller restores it."""


@dataclass(frozen=True)
class BlockStates:
    """The residual stream around one block.

    Attributes:
        before: What enters the attention branch (b, S, H).
        between: What enters the MLP branch (b, S, H).
        after: What leaves the block (b, S, H).
    """

    before: Tensor
    between: Tensor
    after: Tensor


@torch.inference_mode()
def run_hooked(subject: Subject, handles: Sequence[RemovableHandle]) -> None:
    """Runs the live model as it stands over all micro-batches, and then takes hooks off."""
    loaded = subject.live.loaded
    try:
        for ids in subject.micro_batches:
            loaded.family.hidden_states(loaded.model, ids)
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def block_states(live: LiveModel, ids: Tensor) -> Iterator[BlockStates]:
    """The residual stream around every block of the model as it stands, for token ids (b, S)."""
    family, model = live.loaded.family, live.loaded.model
    hidden, arguments = family.block_inputs(model, ids)
    for index, block in enumerate(family.blocks(model)):
        states = _run(family.at(index), block, hidden, arguments[index])
        yield BlockStates(
            *(family.hidden_of(model, s) for s in (states.before, states.between, states.after))
        )
        hidden = states.after


def _run(family: Family, block: nn.Module, hidden: Tensor, keywords: dict[str, Any]) -> BlockStates:
    """Runs a block; without its MLP it gives what enters that branch."""
    after = run_block(block, hidden, keywords)
    if family.sublayers != ("attention", "mlp"):
        return BlockStates(hidden, hidden if "mlp" in family.sublayers else after, after)
    with replaced(block, family.replacements(block, "mlp")):
        return BlockStates(hidden, run_block(block, hidden, keywords), after)
