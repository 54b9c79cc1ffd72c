"""The interface of a model family: where units live, how one is removed, what widths couple.

A family is a small declaration. The class below describes a decoder laid out like Llama's;
another family overrides the attributes, and only rarely a method.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from math import prod
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from evocompress.core.architecture import Architecture
from evocompress.core.types import Unit
from evocompress.core.units import UnitTree
from evocompress.core.widths import Widths
from evocompress.models.families import shapes
from evocompress.models.families.branches import (
    ABSENT,
    Attributes,
    Matrix,
    SubLayer,
    SubLayerName,
    llama_attention,
    llama_mlp,
)
from evocompress.models.families.logits import LogitKeys, logits_of
from evocompress.models.families.mixture import Mixture
from evocompress.models.families.names import BlockNames
from evocompress.models.families.shapes import attention_windows, matrix_shape, roles
from evocompress.models.families.sharing import share_modules
from evocompress.models.families.stand_ins import Recorder, ZeroAttention, ZeroOutput
from evocompress.models.families.uneven import head_shape, missing, text_config
from evocompress.models.tasks import CAUSAL, Task


class Family:
    """A decoder laid out like Llama's; other families are subclasses.

    A block must be ``x + attention(x)`` followed by ``x + mlp(x)``, each branch with its own
    norms, and take the hidden state as its first argument.

    Attributes:
        model_type: The ``config.model_type`` that the family serves.
        task: What its models are for.
        layers_path: Module path of the list of blocks.
        norm_path: Module path of the norm after the last block; empty where there is none.
        attention: The attention branch of each block.
        mlp: The MLP branch of each block.
        mixture: How its experts are held, where it is a mixture of them; `mlp` then names the
            matrices of the first one.
        unused: A regular expression of tensors that checkpoints may hold or lack, because nothing
            that is compared is computed with them.
        two_way: A token sees those behind it as well.
        two_way_key: Key of the config by which that can be set; empty where there is no such key.
        cap_key: Key of the config with the bound of soft-capped logits; empty where they have none.
        among: Of how many things that a block yields the hidden state is the first; 0 where a block
            yields nothing else.
        shared: Norms of a block that several branches read, and that stay whatever is dropped.
        calls: How often a forward pass runs each block before the next one, where some are run more
            than once: their layers share weights. Empty where none is.
        tied: Names of the parameters of a block that other blocks have as well; see `at`.
        sharing: For each block the first one whose matrices it runs as well; -1 where none are.
        commons: Path of the module with these in a block; see `at`.
        within: Its MLP lies in its attention, without which it is not run; see `at`.
        alone: Why nothing is known but its matrices; empty where more is.

    Examples:
        >>> from evocompress.testing.tiny import tiny_loaded
        >>> loaded = tiny_loaded("llama")
        >>> [unit.kind for unit in loaded.family.units(loaded.model)][:3]
        ['block', 'attention', 'matrix']
    """

    model_type: str
    task: Task = CAUSAL
    layers_path: str = "model.layers"
    norm_path: str = "model.norm"
    attention: SubLayer = llama_attention()
    mlp: SubLayer = llama_mlp()
    mixture: Mixture | None = None
    unused: str = ""
    two_way: bool = False
    two_way_key: ClassVar[str] = ""
    cap_key: str = ""
    among: int = 0
    shared: tuple[str, ...] = ()
    calls: tuple[int, ...] = ()
    tied: tuple[str, ...] = ()
    sharing: tuple[int, ...] = ()
    commons: str = ""
    within: bool = False
    alone: str = ""

    @property
    def attends(self) -> bool:
        """Whether keys and values are cached for the attention of a block; see `at`."""
        return True

    def at(self, index: int) -> Family:
        """The family as one block has it; another only where blocks are of several kinds."""
        return self

    def check(self, model: PreTrainedModel) -> None:
        """Raise `ModelError` for a variant of the family whose blocks are built otherwise."""

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """Every linear matrix of a block, in the order of computation.

        Of a mixture of experts those of the first one, which stand for all; see `matrices_of`.
        """
        return tuple(matrix for _, branch in self._branches() for matrix in branch.matrices)

    @property
    def logit_keys(self) -> LogitKeys:
        """The keys of the config with what scales and bounds logits."""
        return LogitKeys(self.cap_key)

    @property
    def sublayers(self) -> tuple[SubLayerName, ...]:
        """The branches of a block, in order."""
        return tuple(name for name, _ in self._branches())

    @property
    def block_names(self) -> BlockNames:
        """The names of the blocks."""
        return BlockNames(self.layers_path)

    def output(self, sublayer: SubLayerName) -> Matrix:
        """The matrix of a sub-layer whose input columns belong to heads or channels.

        Of a mixture of experts the first expert's, whose widths all share.
        """
        return self._branch(sublayer).output

    def blocks(self, model: PreTrainedModel) -> nn.ModuleList:
        """The blocks in order; an entry may be replaced in place."""
        layers = model.get_submodule(self.layers_path)
        assert isinstance(layers, nn.ModuleList)
        return layers

    def units(self, model: PreTrainedModel) -> UnitTree:
        """The tree of units: each block, its attention and matrices, its MLP and matrices.

        What a block of a compressed model lacks has no units.
        """
        matrices = block_matrices(self, model)
        return UnitTree(
            unit
            for index, block in enumerate(self.blocks(model))
            for unit in self.at(index)._block_units(
                index, block, matrices[index], model, missing(model.config, index)
            )
        )

    def _block_units(
        self,
        index: int,
        block: nn.Module,
        matrices: tuple[Matrix, ...],
        model: PreTrainedModel,
        gone: tuple[SubLayerName, ...],
    ) -> Iterator[Unit]:
        mixed = self.mixture.of_unit() if self.mixture else {}
        name = self.block_names[index]
        words = roles(matrices)
        there = [one for one in self._branches() if one[0] not in gone]
        if there:
            yield Unit(name, "block", None, index, "block", droppable=self._droppable(block))
        for kind, branch in there:
            sublayer = f"{name}.{kind}"
            yield Unit(
                *(sublayer, kind, name, index, kind),
                **mixed if kind == "mlp" else {},
                droppable=self._droppable(block, kind),
                narrowable=branch.narrowable,
                attends=self.attends,
            )
            expert = ""
            for matrix in (matrix for matrix in matrices if matrix.sublayer == kind):
                if matrix.expert != expert:
                    expert = matrix.expert
                    yield Unit(
                        *(f"{name}.{expert}", "expert", sublayer, index, expert),
                        droppable=self.mixture is not None and self.mixture.droppable,
                        group=self.mixture.group(int(expert.rpartition(".")[2]))
                        if self.mixture
                        else 0,
                    )
                yield Unit(
                    name=f"{name}.{matrix.path}",
                    kind="matrix",
                    parent=f"{name}.{matrix.owner}",
                    block=index,
                    role=words[matrix.path],
                    shape=matrix_shape(block, matrix),
                    rows=matrix.rows,
                    columns=matrix.columns,
                    bias=block.get_submodule(matrix.path).bias is not None,
                    positions=self._positions(index, matrix),
                    patch=prod(matrix.kernel),
                    of_cache=matrix.of_cache,
                    shares=name if f"{matrix.path}.weight" in self.tied else "",
                )

    def _droppable(self, block: nn.Module, sublayer: SubLayerName | None = None) -> bool:
        """Whether a block without its branches is the identity, or can lack one of them."""
        return True

    def _positions(self, index: int, matrix: Matrix) -> int | None:
        """How often a matrix of a block is applied to a sequence, if not once a token."""
        return None

    def architecture(self, model: PreTrainedModel) -> Architecture:
        """What the cost model must know; parameters are counted, tied weights once."""
        config = text_config(model.config)
        head = model.get_output_embeddings()
        blocks = self.blocks(model)
        counted = [self.at(index).heads(config, index) for index in range(len(blocks))]
        matrices = block_matrices(self, model)
        in_blocks = sum(parameter.numel() for parameter in blocks.parameters())
        return Architecture(
            hidden=config.hidden_size,
            vocabulary=0 if head is None else head.weight.shape[0],
            tied=head is not None and head.weight is model.get_input_embeddings().weight,
            outer_params=sum(p.numel() for p in model.parameters()) - in_blocks,
            heads=tuple(heads for heads, _, _ in counted),
            kv_heads=tuple(kv_heads for _, kv_heads, _ in counted),
            head_dim=max(size for _, _, size in counted),
            channels=tuple(
                0 if "mlp" in missing(config, index) else self.at(index)._channels(block)
                for index, block in enumerate(blocks)
            ),
            windows=attention_windows(config, len(blocks)),
            own_params=tuple(
                (
                    shapes.own_params(block, own.attention, matrices[index], own.tied),
                    shapes.own_params(block, own.mlp, matrices[index], own.tied),
                )
                for index, block in enumerate(blocks)
                for own in (self.at(index),)
            ),
            dtype_bytes=model.dtype.itemsize,
            context=self._context(model),
            causal=self.task.causal,
            one_way=shapes.one_way(self, config),
            outer_flops=self._outer_flops(model),
            **self.mixture.of_architecture(model) if self.mixture else {},
            head_params=tuple(
                shapes.head_params(block, self.at(index).attention, counted[index][:2])
                for index, block in enumerate(blocks)
            ),
            calls=self.calls,
        )

    def heads(self, config: PreTrainedConfig, index: int) -> tuple[int, int, int]:
        """Query heads, key-value heads and the width of a head of a block; see `head_shape`."""
        return head_shape(config, index)

    def _channels(self, block: nn.Module) -> int:
        """Channels of a block's MLP; 0 where they are not known."""
        return matrix_shape(block, self.mlp.output)[1] if self.mlp.coupled else 0

    def _context(self, model: PreTrainedModel) -> int:
        """The longest sequence in tokens."""
        context: int = text_config(model.config).max_position_embeddings
        return context

    def _outer_flops(self, model: PreTrainedModel) -> int:
        """Operations of a sequence outside the blocks, the head at each position apart."""
        return 0

    def hidden_states(self, model: PreTrainedModel, batch: Tensor) -> Tensor:
        """The hidden states (B, S, H) of a batch after the final norm; no outputs."""
        output = model.base_model(**self.task.inputs(batch, model.dtype))
        states: Tensor = output.last_hidden_state
        return states

    def outputs(self, model: PreTrainedModel, hidden: Tensor) -> Tensor:
        """What is compared with the dense model's, of hidden states from `hidden_states`.

        Args:
            model: Its head is used.
            hidden: Some of the states that `Task.states` gives.

        Returns:
            Of a causal language model the logits (..., V) of (..., H); of other tasks the
            logits or embeddings (B, C) of whole sequences (B, S, H).
        """
        return logits_of(model, hidden, self.logit_keys)

    def replacements(self, block: nn.Module, sublayer: SubLayerName) -> dict[str, nn.Module]:
        """What to put into `block` so that a sub-layer adds exactly nothing, uncomputed.

        Returns:
            {module path within the block: a new module to put there}; putting the former
            modules back restores the block.
        """
        branch = self._branch(sublayer)
        core = ZeroAttention() if sublayer == "attention" else ZeroOutput()
        return {path: nn.Identity() for path in branch.identity_modules} | {
            branch.zero_module: core
        }

    def narrowing(self, block: nn.Module, sublayer: SubLayerName, widths: Widths) -> Attributes:
        """What to set in `block` so that its own forward pass runs at other widths.

        Only attributes that the forward pass reads; the matrices and biases of the sub-layer
        must have the new shapes (`evocompress.compression.weights`). The former values restore the
        block.

        Args:
            block: With the modules of the sub-layer in place.
            sublayer: Which branch changes its width.
            widths: Of the block, with the new one of `sublayer`.
        """
        core, name = self.attention.zero_module, "num_key_value_groups"
        # Classes whose heads all have a key of their own need not know how many there are.
        if sublayer == "mlp" or not hasattr(block.get_submodule(core), name):
            return {}
        return {(core, name): widths.heads // widths.kv_heads}

    def block_inputs(
        self, model: PreTrainedModel, batch: Tensor
    ) -> tuple[Tensor, list[dict[str, Any]]]:
        """What the blocks are called with for a batch, without running any block.

        Returns:
            The state (B, S, H) that enters block 0, and for each block its keyword
            arguments (masks, position embeddings, which may differ from block to block):
            ``state = run_block(block, state, arguments[i])`` goes from block to block. It is the
            hidden state, or begins with that; see `hidden_of`.
        """
        blocks = self.blocks(model)
        originals = list(blocks)
        recorders = [Recorder(block, self.among) for block in originals]
        try:
            _put(recorders, blocks)
            self.hidden_states(model, batch)
        finally:
            _put(originals, blocks)
        return recorders[0].hidden, [recorder.arguments for recorder in recorders]

    def hidden_of(self, model: PreTrainedModel, state: Tensor) -> Tensor:
        """The hidden state (B, S, H) of what is carried from block to block."""
        return state

    def _branch(self, sublayer: SubLayerName) -> SubLayer:
        return self.attention if sublayer == "attention" else self.mlp

    def _branches(self) -> tuple[tuple[SubLayerName, SubLayer], ...]:
        both: tuple[tuple[SubLayerName, SubLayer], ...]
        both = (("attention", self.attention), ("mlp", self.mlp))
        return tuple((name, branch) for name, branch in both if branch is not ABSENT)


def matrices_of(family: Family) -> tuple[Matrix, ...]:
    """Every linear matrix of a block in the order of computation, those of all experts too."""
    return family.mixture.expanded(family.matrices) if family.mixture else family.matrices


def block_matrices(family: Family, model: PreTrainedModel) -> list[tuple[Matrix, ...]]:
    """For each block of a model what `matrices_of` says of its kind."""
    of_kind = cache(matrices_of)
    return [of_kind(family.at(index)) for index in range(len(family.blocks(model)))]


def prepare(family: Family, model: PreTrainedModel) -> None:
    """Change, in place, how a loaded model holds its weights, but not what it computes.

    Afterwards every matrix is a module of its own, as `matrices_of` says.
    """
    share_modules(family.sharing, family.commons, model.config, family.blocks(model))
    if family.mixture is None:
        return
    for index, block in enumerate(family.blocks(model)):
        if (mixture := family.at(index).mixture) is not None:
            mixture.prepare(model, [block])


def final_states(family: Family, model: PreTrainedModel, state: Tensor) -> Tensor:
    """The hidden states (B, S, H) behind the final norm, of what leaves the last block."""
    final: Tensor = final_norm(family, model)(family.hidden_of(model, state))
    return final


def final_norm(family: Family, model: PreTrainedModel) -> nn.Module:
    """The norm after the last block; the identity where a family has none."""
    return model.get_submodule(family.norm_path) if family.norm_path else nn.Identity()


def _put(modules: Sequence[nn.Module], blocks: nn.ModuleList) -> None:
    for index, module in enumerate(modules):
        blocks[index] = module
