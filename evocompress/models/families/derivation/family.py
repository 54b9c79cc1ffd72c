"""The family of a model whose type has no entry of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from evocompress.core.architecture import Architecture
from evocompress.core.beside import Beside
from evocompress.core.errors import ModelError
from evocompress.core.units import UnitTree
from evocompress.core.widths import Widths
from evocompress.models.families.base import Family
from evocompress.models.families.branches import ABSENT, Attributes, Matrix, SubLayerName
from evocompress.models.families.derivation.block_kind import (
    Kind,
    first_parts,
    kv_times,
    module_classes,
    rows_of_query,
)
from evocompress.models.families.derivation.common import common_law
from evocompress.models.families.derivation.ending import body_of
from evocompress.models.families.derivation.shrink import CONTEXT_KEYS
from evocompress.models.families.derivation.stream import LINEAR
from evocompress.models.families.encoder import embedding
from evocompress.models.families.handed import Handed, unread, why_blocks_stay
from evocompress.models.families.logits import LogitKeys
from evocompress.models.families.mixture import mean_count
from evocompress.models.families.retasked import makes_scores, with_task
from evocompress.models.families.shapes import matrix_shape
from evocompress.models.families.uneven import (
    has_own,
    head_shape,
    is_compressed,
    missing,
    text_config,
)
from evocompress.models.tasks import CAUSAL, SCORES, Task

HEAD = r"lm_head\..*"
"""What embedding models may have of the language models that they were trained from."""

NO_LIMIT = 2**20
"""Tokens of the longest sequence where a config names none."""


class Derived(Family):
    """The layout of one model, read off a tiny model of its class and config, and proved on that.

    Args:
        model_type: Of the config.
        layers_path: Of the list of blocks.
        norm_path: Of the norm behind them.
        among: Of how many things that a block yields the hidden state is the first; 0 for a tensor.
        logit_keys: Of the config, with what scales logits.
        kinds: The kinds of blocks.
        order: The index of each block's kind.
        two_way: Whether a token sees those behind it as well.
        task: What the models are for.
        handed: The argument by which blocks hand on keys and values; empty where they do not.
        calls: See `Family`.
        sharing: For each block the first one with the matrices that both run; -1 where it shares
            none. Empty where none does.
        body: Path of the part that makes the hidden states of tokens; empty for the innermost.

    Examples:
        >>> from transformers import Olmo2Config, Olmo2ForCausalLM
        >>> from evocompress.models.families.derivation.derived import derive
        >>> family = derive(Olmo2ForCausalLM, Olmo2Config())
        >>> family.layers_path, family.sublayers, family.mlp.output.path
        ('model.layers', ('attention', 'mlp'), 'mlp.down_proj')
    """

    def __init__(
        self,
        model_type: str,
        layers_path: str,
        norm_path: str,
        among: int,
        logit_keys: LogitKeys,
        kinds: Sequence[Kind],
        order: Sequence[int],
        two_way: bool = False,
        task: Task = CAUSAL,
        handed: str = "",
        calls: Sequence[int] = (),
        sharing: Sequence[int] = (),
        body: str = "",
    ) -> None:
        self.model_type = model_type
        self.task = task
        self.two_way = two_way
        self.layers_path = layers_path
        self.norm_path = norm_path
        self.among = among
        self.keys = logit_keys
        self.kinds = tuple(kinds)
        self.order = tuple(order)
        self.handed = handed
        self.calls = tuple(calls)
        self.sharing = tuple(sharing)
        self.body = body
        self._kinds = [self.kinds[place] for place in self.order]
        self.tied = tuple(dict.fromkeys(name for kind in self.kinds for name in kind.tied))
        self.commons = next((kind.commons for kind in self.kinds if kind.commons), "")
        self.within = any(part.within for kind in self.kinds for part in kind.parts.values())
        self.shared = tuple(dict.fromkeys(path for kind in self.kinds for path in kind.shared))
        parts = first_parts(self.kinds)
        self.attention = parts["attention"].sublayer if "attention" in parts else ABSENT
        self.mlp = parts["mlp"].sublayer if "mlp" in parts else ABSENT
        self.mixture = parts["mlp"].mixture if "mlp" in parts else None
        if len(kinds) > 1:
            mixed = (kind.parts["mlp"].mixture for kind in kinds if "mlp" in kind.parts)
            self.mixture = next(filter(None, mixed), None)
        self._each: tuple[Derived, ...] = (self,)
        if len(self.kinds) > 1:
            common = model_type, layers_path, norm_path, among, logit_keys
            rest = [0], two_way, task
            self._each = tuple(type(self)(*common, [kind], *rest) for kind in self.kinds)

        unused = [HEAD] if task.compared == "embeddings" else []
        self.unused = "|".join(
            [*unused, *unread(self._kinds, self.block_names, self.attention.zero_module)]
        )

    @property
    def logit_keys(self) -> LogitKeys:
        """See `Family.logit_keys`."""
        return self.keys

    @property
    def limits(self) -> list[str]:
        """What cannot be done to the model, and why."""
        found = [limit for kind in self.kinds for limit in kind.limits]
        found += why_blocks_stay(self._kinds)
        found += [
            f"blocks that run {kind.commons} cannot be dropped where that is made narrower: costs "
            "are sums over units, and what both save is not the sum of what each does"
            for kind in self.kinds
            if any(part.settings for part in kind.common.values())
        ]
        if any(map(self._uncounted, range(len(self.order)))):
            why = next((f" ({kind.uncounted})" for kind in self.kinds if kind.uncounted), "")
            found.append(f"flops cannot be bounded: not all operations are counted{why}")
        return list(dict.fromkeys(found))

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """See `Family.matrices`; those of all kinds."""
        if len(self.kinds) == 1:
            return super().matrices
        every = (matrix for own in self._each for matrix in own.matrices)
        return tuple({matrix.path: matrix for matrix in every}.values())

    @property
    def attends(self) -> bool:
        """See `Family.attends`."""
        return any(kind.attends for kind in self.kinds)

    def with_kinds(self, each: Sequence[Kind], sharing: Sequence[int] = ()) -> Derived:
        """The same family, each of whose blocks is of a kind of its own."""
        kinds = [kind for place, kind in enumerate(each) if kind not in each[:place]]
        order = [kinds.index(kind) for kind in each]
        common = self.model_type, self.layers_path, self.norm_path, self.among, self.keys
        rest = self.two_way, self.task, self.handed, self.calls
        return Derived(*common, kinds, order, *rest, sharing, self.body)

    def at(self, index: int) -> Derived:
        """See `Family.at`."""
        return self._each[self.order[index]] if len(self.kinds) > 1 else self

    def _droppable(self, block: nn.Module, sublayer: SubLayerName | None = None) -> bool:
        """See `Family._droppable`; of a family with one kind of blocks."""
        (kind,) = self.kinds
        if kind.stores and sublayer != "mlp":
            return False
        if kind.mlp_state and sublayer == "attention":
            return False
        if sublayer and kind.parts[sublayer].within:
            return False
        return not kind.remainder or sublayer is not None

    def units(self, model: PreTrainedModel) -> UnitTree:
        """See `Family.units`; the attention of a block tells what it shares."""
        found = super().units(model)
        if not self.sharing:
            return found
        return UnitTree(
            replace(unit, shares=self.block_names[self.sharing[unit.block]])
            if unit.kind == "attention" and self.sharing[unit.block] >= 0
            else unit
            for unit in found
        )

    def heads(self, config: PreTrainedConfig, index: int) -> tuple[int, int, int]:
        """See `Family.heads`; none where no attention computes with heads."""
        own = self.at(index)
        heads, kv_heads, size = head_shape(config, index)
        known = own.kinds[0].heads is not None or own.attention.narrowable
        if not has_own(config, index, "num_key_value_heads"):
            kv_heads *= own.kinds[0].kv_times
        return (heads, kv_heads, size) if known else (0, 0, size)

    def bound(self, model: PreTrainedModel) -> Family:
        """With one output, or several that do not exclude each other, a classifier's are scores."""
        if self.task.causal or self.task.compared == "embeddings":
            return self
        return with_task(self, SCORES) if makes_scores(model) else self

    def check(self, model: PreTrainedModel) -> None:
        """Refuse a model with a block that is built otherwise than those that were tried."""
        lacking = is_compressed(model.config.model_type)
        for index, block in enumerate(self.blocks(model)):
            own, kind = module_classes(block), self.at(index).kinds[0]
            whole = kind.classes
            heads, kv_heads, _ = head_shape(model.config, index)
            fewer = not lacking and kind.kv_times not in (1, kv_times(block, heads, kv_heads))
            if fewer or (own != whole and not (lacking and own.items() <= whole.items())):
                raise ModelError(
                    f"block {index} of this {self.model_type} model has other modules than its "
                    "class gives it by its config"
                )

    def architecture(self, model: PreTrainedModel) -> Architecture:
        """See `Family.architecture`; what is of no sub-layer stays with the model."""
        found = super().architecture(model)
        params = flops = 0
        tied: dict[int, int] = {}
        common: dict[int, int] = {}
        for index, block in enumerate(self.blocks(model)):
            staying = tuple(f"{path}." for path in self.at(index).shared)
            every = dict(block.named_parameters())
            own = {name: p.numel() for name, p in every.items() if f"{name}.".startswith(staying)}
            linear = (path for path, m in block.named_modules() if isinstance(m, LINEAR))
            params += sum(own.values())
            tied |= {id(p): p.numel() for name, p in every.items() if name in self.at(index).tied}
            parts = self.at(index).kinds[0].common.values()
            shared = (f"{matrix.path}.weight" for part in parts for matrix in part.matrices)
            common |= {id(every[n]): every[n].numel() for n in shared if n in every}
            each = 2 * sum(own.get(f"{path}.weight", 0) for path in linear)
            flops += each * found.runs[index]
        if not self.task.causal and self.task.compared != "embeddings":
            # A classifier is run at every position.
            found = replace(found, vocabulary=model.config.num_labels or 0)
        beside = [self._beside(model, index) for index in range(len(self.order))]
        sizes = [self.cached_and_width(model, index) for index in range(len(found.heads))]
        dims = [head_shape(model.config, index)[2] for index in range(len(found.heads))]
        head_dim = dims[0]
        latents, widths = (tuple(one) for one in zip(*sizes, strict=True))
        return replace(
            found,
            head_dim=head_dim,
            latents=latents if any(latents) else (),
            repeated=any(kind.heads and kind.heads.repeated for kind in self.kinds),
            head_dims=tuple(dims) if {*dims} != {head_dim} else (),
            head_widths=widths if {*widths} != {2 * head_dim} else (),
            outer_params=found.outer_params + params + sum(tied.values()) - sum(common.values()),
            token_flops=flops + self._token_flops(model),
            handed=self._layout(model.config).width if self.handed else 0,
            uncounted=next(filter(None, map(self._uncounted, range(len(self.order)))), ""),
            beside=tuple(beside) if any(beside) else (),
            shared=sum(common.values()),
            experts=mean_count(self.at(index).mixture for index in range(len(self.order))),
        )

    def _beside(self, model: PreTrainedModel, index: int) -> Beside | None:
        """What the attention of a block takes beside its matrices; shared ones are among that."""
        own, first = self.at(index).kinds[0].beside, (self.sharing or (-1,) * (index + 1))[index]
        if own is None or first < 0 or "attention" in missing(model.config, index):
            return own
        return own.plus(self._common_law(model, index, first))

    def _common_law(self, model: PreTrainedModel, index: int, first: int) -> Beside:
        own, heads = self.at(index).kinds[0], self.heads(model.config, first)
        return common_law(own, self.blocks(model)[index], heads)

    def _token_flops(self, model: PreTrainedModel) -> int:
        """Operations of a token outside the blocks, the head apart.

        They make inputs of all blocks, or the width of the blocks from that of the embedding.
        """
        body = model.get_submodule(self.layers_path.rpartition(".")[0])
        outer = (module for module in body.children() if isinstance(module, LINEAR))
        return 2 * sum(module.weight.numel() for module in outer)

    def cached_and_width(self, model: PreTrainedModel, index: int) -> tuple[int, int]:
        """What is cached of a token in place of keys and values, and how wide a head's are."""
        own = self.at(index)
        counted, (heads, kv_heads, size) = own.kinds[0].heads, self.heads(model.config, index)
        if self.sharing and heads and self.sharing[index] == index:
            return 0, self._common_law(model, index, index).pair // heads // 2
        if counted is None or not counted.query_rows or not heads:
            return 0, 2 * size
        block, widths = self.blocks(model)[index], Widths(heads, kv_heads, size, 0)
        rows = rows_of_query(block, own.attention.matrices, widths)
        value = matrix_shape(block, own.attention.output)[1] // heads
        latent = counted.latent and block.get_parameter(f"{counted.latent}.weight").shape[0]
        return latent or 0, rows if counted.query_rows > 1 else rows + value

    def _uncounted(self, index: int) -> str:
        """The path of a sub-layer of a block whose operations are not all known; empty if none."""
        (kind,) = self.at(index).kinds
        for name, part in kind.parts.items():
            by_heads = name == "mlp" or kind.by_heads
            if not (part.matrices if by_heads else kind.beside):
                return f"{self.block_names[index]}.{part.branch.core[-1]}"
        return ""

    def _context(self, model: PreTrainedModel) -> int:
        """See `Family._context`; models that need no positions name no length."""
        lengths = (getattr(text_config(model.config), key, None) for key in CONTEXT_KEYS)
        return next((length for length in lengths if isinstance(length, int)), NO_LIMIT)

    def hidden_states(self, model: PreTrainedModel, batch: Tensor) -> Tensor:
        """See `Family.hidden_states`; in some models it is not the base model that has them."""
        body = model.get_submodule(self.body) if self.body else body_of(model, self.layers_path)
        states: Tensor = body(**self.task.inputs(batch, model.dtype)).last_hidden_state
        return states

    def outputs(self, model: PreTrainedModel, hidden: Tensor) -> Tensor:
        """See `Family.outputs`; a classifier reads the last token's state.

        The classes of transformers skip padding at a sequence's end; here there is none.
        """
        if self.task.causal:
            return super().outputs(model, hidden)
        if self.task.compared == "embeddings":
            return embedding(hidden, self.task.pooling)
        head: Any = model
        scores: Tensor = head.score(hidden[:, -1])
        return scores

    def block_inputs(
        self, model: PreTrainedModel, batch: Tensor
    ) -> tuple[Tensor, list[dict[str, Any]]]:
        """See `Family.block_inputs`."""
        hidden, arguments = super().block_inputs(model, batch)
        if not self.handed:
            return hidden, arguments
        layout = self._layout(model.config)
        return layout.first(hidden), [given | {self.handed: layout} for given in arguments]

    def hidden_of(self, model: PreTrainedModel, state: Tensor) -> Tensor:
        """See `Family.hidden_of`."""
        return self._layout(model.config).hidden_of(state) if self.handed else state

    def _layout(self, config: PreTrainedConfig) -> Handed:
        """Where in a state the keys and values lie that blocks hand on."""
        places = {key: i for i, kind in enumerate(self._kinds) for key in kind.stores}
        shapes = {key: (head_shape(config, index)[1:],) * 2 for key, index in places.items()}
        return Handed(text_config(config).hidden_size, shapes)

    def replacements(self, block: nn.Module, sublayer: SubLayerName) -> dict[str, nn.Module]:
        """See `Family.replacements`; of a family with one kind of blocks."""
        (kind,) = self.kinds
        part = kind.parts[sublayer]
        return {} if part.within else part.branch.removal(block)

    def narrowing(self, block: nn.Module, sublayer: SubLayerName, widths: Widths) -> Attributes:
        """See `Family.narrowing`; of a family with one kind of blocks."""
        (kind,) = self.kinds
        part = kind.parts[sublayer]
        assert part.settings is not None
        # A ``Conv1D`` knows the number of its outputs.
        item = 1 if sublayer == "mlp" else widths.head_dim
        outputs: Attributes = {
            (matrix.path, "nf"): item * sum(widths.lengths[axis] for axis in matrix.rows)
            for matrix in part.matrices
            if matrix.transposed and matrix.rows
        }
        return part.settings.attributes(block, part.narrowed or part.branch, widths) | outputs


class ToBeDerived(Family):
    """Stands for the family of a model until its config has been read.

    Args:
        model_type: Of the config.
        task: What the model is for.

    Examples:
        >>> ToBeDerived("olmo2").model_type
        'olmo2'
    """

    def __init__(self, model_type: str, task: Task = CAUSAL) -> None:
        self.model_type = model_type
        self.task = task
