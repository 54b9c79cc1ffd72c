"""Takes some steps of `Masters` and writes their state, in one process or in those of torchrun."""

from __future__ import annotations

import sys

import torch
from safetensors.torch import save_file
from torch import nn

from evocompress.core.config import HealConfig
from evocompress.core.processes import is_first, joined, own_part
from evocompress.healing.masters import Masters

WIDTHS = {"a": 4, "b": 8, "c": 2, "d": 2}

TAKEN = ("ac", "ab")
"""The layers that each of two micro-batches takes; none takes ``d``."""


def trained() -> dict[str, torch.Tensor]:
    """The state after three steps of two micro-batches; none in processes after the first."""
    generator = torch.Generator().manual_seed(0)
    layers = {name: nn.Linear(8, width, bias=False) for name, width in WIDTHS.items()}
    for layer in layers.values():
        layer.weight.data.normal_(generator=generator)
    model = nn.ModuleDict(layers).to(torch.bfloat16)
    zeros = torch.arange(64).reshape(8, 8) % 3 == 0
    layers["b"].weight.data[zeros] = 0
    masters = Masters(model, {"b.weight": zeros}, HealConfig(weight_decay=0.1))
    rows = torch.randn(2, 8, generator=generator).to(torch.bfloat16)
    for _ in range(3):
        for place in own_part(2):
            outputs = [layers[name](rows[place]).float() for name in TAKEN[place]]
            sum(output.square().sum() for output in outputs).backward()
            masters.collect_gradients()
        masters.clip_gradients()
        masters.step(1e-2)
    return {name: tensor.clone() for name, tensor in masters.state().items()}


if __name__ == "__main__":
    for path in sys.argv[1:]:
        with joined():
            state = trained()
            if is_first():
                save_file(state, path)
