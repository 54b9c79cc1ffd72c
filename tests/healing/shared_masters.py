"""Takes some steps of `Masters` and writes their state, in one process or in those of torchrun."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from evocompress.compression.quantization.gptq import RoundingTask, round_to_nearest
from evocompress.core.config import HealConfig
from evocompress.core.processes import is_first, joined, own_part
from evocompress.core.storage import STORAGE
from evocompress.healing.masters import Masters
from evocompress.healing.rounded import RoundedWeight
from evocompress.healing.typed import Through, TypedParameters

WIDTHS = {"a": 4, "b": 8, "c": 2, "d": 2, "e": 4, "f": 4}

TAKEN = ("acef", "abef")
"""The layers that each of two micro-batches takes; none takes ``d``."""

THROUGH = {"e.weight": True, "f.weight": False}
"""What is trained through its rounding, and whether in its integers as well."""

KIND = STORAGE["q5_1"]


def trained() -> dict[str, torch.Tensor]:
    """The state after three steps of two micro-batches; none in processes after the first."""
    generator = torch.Generator().manual_seed(0)
    layers = {
        name: nn.Linear(32 if f"{name}.weight" in THROUGH else 8, width, bias=False)
        for name, width in WIDTHS.items()
    }
    for layer in layers.values():
        layer.weight.data.normal_(generator=generator)
    model = nn.ModuleDict(layers).to(torch.bfloat16)
    zeros = torch.arange(64).reshape(8, 8) % 3 == 0
    layers["b"].weight.data[zeros] = 0
    through = {}
    for name, weights in THROUGH.items():
        first = round_to_nearest(
            RoundingTask(model.get_parameter(name).data.float(), KIND), torch.float16
        )
        through[name] = RoundedWeight(first, KIND, torch.float16, weights=weights, scales=True)
    typed = TypedParameters(Path(), torch.bfloat16)
    config = HealConfig(weight_decay=0.1)
    masters = Masters(model, {"b.weight": zeros}, config, Through(typed, through))
    rows = torch.randn(2, 8, generator=generator).to(torch.bfloat16)
    for _ in range(3):
        for place in own_part(2):
            row = rows[place]
            outputs = [
                layers[name](row.repeat(4) if f"{name}.weight" in THROUGH else row).float()
                for name in TAKEN[place]
            ]
            sum(output.square().sum() for output in outputs).backward()
            masters.collect_gradients()
        masters.clip_gradients()
        masters.step(1e-2)
    codes = {f"codes.{name}": made.codes for name, made in masters.rounded().items()}
    return {name: tensor.clone() for name, tensor in (masters.state() | codes).items()}


if __name__ == "__main__":
    for path in sys.argv[1:]:
        with joined():
            state = trained()
            if is_first():
                save_file(state, path)
