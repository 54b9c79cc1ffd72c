"""What the contract of families looks at while a model runs."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from evocompress.models.families.patches import rows_read


def embedding_weight(model: PreTrainedModel) -> Tensor:
    """The weight of the input embeddings."""
    table: Any = model.get_input_embeddings()
    weight: Tensor = table.weight
    return weight


def note_shape(
    shapes: dict[str, tuple[int, int]], unit: Any, module: nn.Module, args: Any, output: Tensor
) -> None:
    """Notes (out, in) of the matrix that a module is, from a call of it."""
    if isinstance(module, nn.Conv2d):
        shapes[unit.name] = (output.shape[1], rows_read(module, args[0], 1).shape[-1])
        assert unit.positions == output.shape[2:].numel()
        return
    shapes[unit.name] = (output.shape[-1], args[0].shape[-1])


def note_input(inputs: dict[str, Tensor], path: str, _: nn.Module, args: Any) -> None:
    """Notes what a module is called with."""
    inputs[path] = args[0].clone()


def must_not_run(*_: Any) -> None:
    """Takes the place of the forward pass of a block that is not to run."""
    raise AssertionError("a block ran")
