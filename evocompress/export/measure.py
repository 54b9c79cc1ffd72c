"""Counts what a written checkpoint really holds, to stand beside the predicted costs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from evocompress.models.families import Family

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
"""What batch norms store beside their parameters."""


def measured_costs(folder: Path, family: Family) -> dict[str, int]:
    """The costs of `evocompress.space.costs.COSTS` that can be counted in the files.

    Returns:
        ``params``, ``body_params``, ``nonzeros``, ``body_nonzeros``, ``matrix_nonzeros`` (in
        weights) and ``weight_bytes``. As in the cost model only zeros of the blocks' linear
        matrices are not counted as non-zero.
    """
    block = family.block_names.pattern + r"\.((before|after)\.\d+\.)?"
    paths = "|".join(matrix.pattern for matrix in family.matrices)
    matrix = re.compile(rf"{block}({paths})\.weight")
    total = body = matrices = zeros = size = 0
    for stored, tensor in _tensors(folder):
        name = family.mixture.own_name(stored) if family.mixture else stored
        total += tensor.numel()
        size += tensor.numel() * tensor.itemsize
        body += tensor.numel() if re.match(block, name) else 0
        if matrix.fullmatch(name):
            matrices += tensor.numel()
            zeros += tensor.numel() - int(torch.count_nonzero(tensor))
    return {
        "params": total,
        "body_params": body,
        "nonzeros": total - zeros,
        "body_nonzeros": body - zeros,
        "matrix_nonzeros": matrices - zeros,
        "weight_bytes": size,
    }


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The parameters in all files, by name."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            for name in names:
                if not name.endswith(BUFFERS):
                    yield name, file.get_tensor(name)
