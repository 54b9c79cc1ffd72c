"""The linear matrices of a block and the residual branches that they make up."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from evocompress.core.types import Axis
from evocompress.core.widths import narrowable
from evocompress.models.families.coupling import Follower

SubLayerName = Literal["attention", "mlp"]

Attributes = dict[tuple[str, str], Any]
"""{(module path within a block, attribute): value}."""


@dataclass(frozen=True)
class Matrix:
    """One linear matrix of a block.

    Attributes:
        path: Module path relative to the block, e.g. ``self_attn.q_proj``.
        sublayer: The sub-layer it belongs to.
        input: What it reads: matrices of a block with the same word read the same tensor, and
            so share their input statistics.
        transposed: The module stores (in, out), as GPT-2's ``Conv1D`` does.
        rows: What its outputs belong to, one part after the other; empty for the residual
            stream.
        columns: The same of its inputs.
        expert: Module path of the expert that it is in, relative to the block; empty outside of
            mixtures. Only the tokens that are sent to the expert pass through it.
        kernel: Of a convolution, whose module stores (out, in, *kernel): as a matrix it is
            (out, in times kernel) and reads the patches of an image.
        of_cache: It makes keys and values of what is cached in place of them.

    Examples:
        >>> Matrix("mlp.down_proj", "mlp", "mlp_out", columns=("channel",)).part
        'weight'
    """

    path: str
    sublayer: SubLayerName
    input: str
    transposed: bool = False
    rows: tuple[Axis, ...] = ()
    columns: tuple[Axis, ...] = ()
    expert: str = ""
    kernel: tuple[int, ...] = ()
    of_cache: bool = False

    @property
    def part(self) -> str:
        """Under which name a level library has this matrix of a narrowed sub-layer.

        It is empty where the rows that stay are the dense matrix's.
        """
        if not narrowable(self.columns):
            return ""
        return "inner" if "inner" in self.columns else "weight"

    @property
    def fixed(self) -> bool:
        """Whether it stays as it is where its sub-layer is narrowed: a shared expert's."""
        return not narrowable((*self.rows, *self.columns))

    @property
    def owner(self) -> str:
        """What is behind the block's name in that of the unit whose width it shares."""
        return self.expert or self.sublayer

    @property
    def pattern(self) -> str:
        """A regular expression of its path; where it is an expert's, of any expert's."""
        if not self.expert:
            return re.escape(self.path)
        experts, number = self.expert.rsplit(".", 1)
        within = self.path.removeprefix(f"{experts}.{number}")
        return rf"{re.escape(experts)}\.\d+{re.escape(within)}"


@dataclass(frozen=True)
class SubLayer:
    """One residual branch of a block.

    Attributes:
        matrices: Its linear matrices, in the order of computation.
        identity_modules: Paths of the modules of the branch that become the identity when the
            branch is removed: norms before and after, activations.
        zero_module: Path of the module that yields zero when the branch is removed. It lies behind
            every identity module that could turn a zero into something else.
        norm_after: Path of the norm, or activation, of the sum of branch and residual stream, where
            there is one (a post-norm block). It is one of the identity modules: it belongs to the
            branch and goes with it.
        followers: What has values for each head or channel beside the matrices.
        gate: Path of the norm of what the branch yields, before the sum, where it has a bias: only
            with its parameters at zero the branch adds nothing. Empty where that is so with the
            output matrix at zero.
        narrowable: Whether heads or channels can be cut; not where something in the branch, such
            as a norm of all queries together, depends on all of them.

    Examples:
        >>> llama_mlp().output.path
        'mlp.down_proj'
    """

    matrices: tuple[Matrix, ...]
    identity_modules: tuple[str, ...]
    zero_module: str
    norm_after: str = ""
    followers: tuple[Follower, ...] = ()
    gate: str = ""
    narrowable: bool = True

    @property
    def output(self) -> Matrix:
        """The last matrix whose input columns belong to heads or channels."""
        return next(matrix for matrix in self.matrices if matrix.part == "weight")

    @property
    def coupled(self) -> bool:
        """Whether it is known which columns belong to heads or channels."""
        return any(matrix.part == "weight" for matrix in self.matrices)


ABSENT = SubLayer(matrices=(), identity_modules=(), zero_module="")
"""The branch that the blocks of a family do not have."""


def llama_attention(identity_modules: tuple[str, ...] = ("input_layernorm",)) -> SubLayer:
    """Attention with separate query, key and value projections."""
    return SubLayer(
        matrices=(
            Matrix("self_attn.q_proj", "attention", "attention_in", rows=("query",)),
            Matrix("self_attn.k_proj", "attention", "attention_in", rows=("key",)),
            Matrix("self_attn.v_proj", "attention", "attention_in", rows=("value",)),
            Matrix("self_attn.o_proj", "attention", "attention_out", columns=("query",)),
        ),
        identity_modules=identity_modules,
        zero_module="self_attn",
    )


def llama_mlp(identity_modules: tuple[str, ...] = ("post_attention_layernorm",)) -> SubLayer:
    """Gated MLP with separate gate and up projections."""
    return SubLayer(
        matrices=(
            Matrix("mlp.gate_proj", "mlp", "mlp_in", rows=("channel",)),
            Matrix("mlp.up_proj", "mlp", "mlp_in", rows=("channel",)),
            Matrix("mlp.down_proj", "mlp", "mlp_out", columns=("channel",)),
        ),
        identity_modules=identity_modules,
        zero_module="mlp",
    )
