"""What is counted of a block: shapes and roles of matrices, and parameters that are in none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from math import prod
from typing import Protocol

from torch import nn
from transformers import PreTrainedConfig

from evocompress.models.families.branches import Matrix, SubLayer
from evocompress.models.families.uneven import text_config


def attention_windows(config: PreTrainedConfig, layers: int) -> tuple[int | None, ...]:
    """The attention window of each block in tokens; ``None`` is full attention.

    A config either names a kind for each layer, or its one window holds for all.
    """
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * layers
    return tuple(window if kind == "sliding_attention" else None for kind in kinds[:layers])


class Directed(Protocol):
    """A family, of which is asked in which direction tokens see; see `Family`."""

    @property
    def two_way(self) -> bool: ...  # noqa: D102

    @property
    def two_way_key(self) -> str: ...  # noqa: D102


def one_way(family: Directed, config: PreTrainedConfig) -> bool:
    """Whether a token of a model sees only those before it, as its class computes it."""
    config = text_config(config)
    both = family.two_way_key and getattr(config, family.two_way_key, None)
    return not (family.two_way or both or getattr(config, "is_causal", True) is False)


def roles(matrices: tuple[Matrix, ...]) -> dict[str, str]:
    """Each path's last word, or the whole path where two matrices end alike."""
    words = {matrix.path: matrix.path.rsplit(".", 1)[-1] for matrix in matrices}
    count = Counter(words.values())
    return {path: word if count[word] == 1 else path for path, word in words.items()}


def matrix_shape(block: nn.Module, matrix: Matrix) -> tuple[int, int]:
    """(out, in) of a matrix, whatever order the module stores."""
    rows, *columns = block.get_parameter(f"{matrix.path}.weight").shape
    return (prod(columns), rows) if matrix.transposed else (rows, prod(columns))


def head_params(block: nn.Module, attention: SubLayer, counts: tuple[int, int]) -> tuple[int, int]:
    """Parameters of an attention, in none of its matrices, of a query head and of a key's.

    None where no heads are counted: where what mixes tokens has none, or is gone.
    """
    found = [0, 0]
    for follower in attention.followers if all(counts) else ():
        place = int(follower.axis != "query")
        tensors = follower.tensors(block).values()
        found[place] += sum(tensor.numel() for tensor in tensors) // counts[place]
    return found[0], found[1]


def own_params(
    block: nn.Module, branch: SubLayer, matrices: Sequence[Matrix], tied: Collection[str]
) -> int:
    """Parameters of a branch that are in none of a block's matrices: norms, biases, a router.

    Those that are `tied` are no block's own.
    """
    weights = {f"{matrix.path}.weight" for matrix in matrices} | {*tied}
    parts = (*branch.identity_modules, branch.zero_module)
    return sum(
        parameter.numel()
        for name, parameter in block.named_parameters()
        if name not in weights and any(name.startswith(f"{part}.") for part in parts)
    )
