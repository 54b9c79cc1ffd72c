"""Counts what a written checkpoint really holds, to stand beside the predicted costs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from evocompress.export.weights import name_when_read
from evocompress.models.families.mixture import FUSED
from evocompress.models.loading import LoadedModel


def measured_costs(
    folder: Path, loaded: LoadedModel, dense_name: Callable[[str], str]
) -> dict[str, int]:
    """The costs of `evocompress.space.costs.COSTS` that can be counted in the files.

    Args:
        folder: With the files.
        loaded: The dense model.
        dense_name: From the name of a tensor of the compressed model to that in the dense one.

    Returns:
        ``params``, ``body_params``, ``nonzeros``, ``body_nonzeros``, ``matrix_nonzeros`` (in
        weights) and ``weight_bytes``. As in the cost model only zeros of the blocks' linear
        matrices are not counted as non-zero.
    """
    family = loaded.family
    # Buffers are no parameters: what batch norms count, corrections of routers.
    kept = loaded.model.state_dict()
    known = {_unnumbered(name) for name in kept}
    buffers = {_unnumbered(name) for name, _ in loaded.model.named_buffers() if name in kept}
    name_of = name_when_read(loaded.model)
    block = family.block_names.pattern + r"\."
    paths = "|".join(matrix.pattern for matrix in family.matrices)
    if family.mixture is not None:
        # As transformers keeps the matrices of all experts of a layer.
        paths += rf"|{re.escape(family.mixture.experts)}\.(mlp\.)?({'|'.join(FUSED)})"
    matrix = re.compile(rf"{block}({paths})(\.weight)?")
    staying = _staying(loaded)
    total = body = matrices = zeros = size = 0
    for stored, tensor in _tensors(folder):
        name = dense_name(stored if _unnumbered(stored) in known else name_of(stored))
        if _unnumbered(name) in buffers:
            continue
        total += tensor.numel()
        size += tensor.numel() * tensor.itemsize
        inner = re.match(block, name) and not f"{name}.".startswith(staying)
        body += tensor.numel() if inner else 0
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


def _staying(loaded: LoadedModel) -> tuple[str, ...]:
    """How the names begin that count as outside: of what stays in a block without sub-layers."""
    family = loaded.family
    matrices = {f"{matrix.path}.weight" for matrix in family.matrices}
    return tuple(
        f"{family.block_names[index]}.{path}."
        for index in range(len(family.blocks(loaded.model)))
        for path in (*family.at(index).shared, *{*family.at(index).tied} - matrices)
    )


def _unnumbered(name: str) -> str:
    """The name of a tensor, whatever the number of its block."""
    return re.sub(r"\d+", "", name)


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors in all files, by name."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            for name in names:
                yield name, file.get_tensor(name)
