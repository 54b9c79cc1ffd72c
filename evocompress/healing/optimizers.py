"""AdamW with its moments in float32 or in eight bits, and what of them is kept to continue from."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from evocompress.core.config import HealConfig
from evocompress.core.errors import ConfigError, one_line

BETAS = (0.9, 0.95)
MOMENTS = ("exp_avg", "exp_avg_sq")

PARTS = ("codes", "scale")
"""Of a moment in eight bits."""

KEPT = ("step", *MOMENTS, *(f"{key}.{part}" for key in MOMENTS for part in PARTS))
"""Names that `moments` gives, some of which a weight has."""

BLOCK = 256
"""Values of a moment in eight bits that have a scale in common, in float32."""

MOMENT_BYTES: Mapping[str, float] = {"adamw": 2 * 4, "adamw8bit": 2 * (1 + 4 / BLOCK)}
"""Of both moments of a weight, by `HealConfig.optimizer`."""


def make_optimizer(weights: Sequence[Tensor], config: HealConfig) -> Optimizer:
    """The optimizer that the configuration says, without moments yet; weights may be none."""
    decay = config.weight_decay
    weights = weights or [torch.empty(0)]  # one of several processes may have nothing to train
    if config.optimizer == "adamw":
        return torch.optim.AdamW(weights, betas=BETAS, weight_decay=decay, fused=True)
    from torchao.optim import AdamW8bit

    warnings.filterwarnings("ignore", "OptimState8bit does not implement _stable_hash")
    optimizer: Optimizer = AdamW8bit(weights, betas=BETAS, weight_decay=decay, block_size=BLOCK)
    return optimizer


def take_step(optimizer: Optimizer, learning_rate: float) -> None:
    """Updates the weights from their gradients at a learning rate, and forgets the gradients.

    Raises:
        ConfigError: The step is to be compiled, and that fails.
    """
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(learning_rate)
        else:
            group["lr"] = learning_rate
    try:
        optimizer.step()
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        what = one_line(error).split(" Set TORCHDYNAMO_VERBOSE")[0]
        raise ConfigError(
            "heal.optimizer=adamw8bit is compiled for this machine, which fails "
            f"({what}): install a C++ compiler, or leave heal.optimizer out"
        ) from error
    optimizer.zero_grad()


def moments(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """What an optimizer knows of a weight as plain tensors, under names; not copies.

    A moment in eight bits is two of them, its codes and the scales of its blocks.
    """
    for key, tensor in state.items():
        if hasattr(tensor, "codes"):
            for part in PARTS:
                yield f"{key}.{part}", getattr(tensor, part)
        else:
            yield key, tensor


def from_moments(known: Mapping[str, Tensor], weight: Tensor) -> dict[str, Tensor]:
    """The state of a weight from copies of what `moments` gave, on the weight's device."""
    state = {
        key: known[key].to(weight.device, copy=True) for key in ("step", *MOMENTS) if key in known
    }
    for key in MOMENTS:
        if f"{key}.codes" in known:
            from torchao.optim.subclass_8bit import OptimState8bit

            moment = OptimState8bit.zeros(
                weight.shape, key == "exp_avg", BLOCK, weight.device, dtype=weight.dtype
            )
            moment.codes.copy_(known[f"{key}.codes"])
            moment.scale.copy_(known[f"{key}.scale"])
            state[key] = moment
    return state
