"""Format ``deci``: Nemotron-NAS's ``block_configs``, which vLLM runs with its class ``DeciLM``.

There every layer has the same number of query heads, which its key-value heads divide. What a
layer has fewer is filled up with heads of zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedModel

from evocompress.core.types import Candidate
from evocompress.export.filling import Target, filled
from evocompress.export.layout import SUBLAYERS, Block, Layout, layout
from evocompress.export.llama_like import first_without_attention, unlike_llama
from evocompress.export.modeling_file import LOADING, ModelingFile
from evocompress.export.pretrained import Pretrained
from evocompress.export.running import MODELING_FILE, Programs, Running
from evocompress.export.weights import StateDict, assemble, renumbered
from evocompress.models.families import SubLayerName
from evocompress.models.loading import LoadedModel
from evocompress.models.modeling import DECI


@dataclass(frozen=True)
class HeadCounts:
    """How many heads the attentions of the written model have.

    Attributes:
        query: Of every layer.
        keys: {block: its key-value heads}.
        added: Query and key-value heads of zeros in all layers together.
    """

    query: int
    keys: Mapping[int, int]
    added: tuple[int, int]


class Deci(Pretrained):
    """One number of query heads; key-value heads, channels and missing sub-layers by layer."""

    loading = LOADING
    adds_zeros: ClassVar[bool] = True
    programs: ClassVar[Programs] = {
        "transformers": Running(MODELING_FILE, on_request=True),
        "vllm": Running("vLLM's DeciLM class", families=("llama", "mistral", "qwen2")),
    }

    def obstacle(self, loaded: LoadedModel, candidate: Candidate) -> str | None:
        """A model with other blocks than Llama's, or a first layer without attention."""
        return (
            unlike_llama(loaded, loaded.family.model_type)
            or ModelingFile().obstacle(loaded, candidate)
            or first_without_attention(layout(loaded, candidate), "vLLM's DeciLM class")
        )

    def note(self, loaded: LoadedModel, candidate: Candidate) -> str:
        """How many heads of zeros there are."""
        query, keys = shared_heads(layout(loaded, candidate)).added
        text = "Format `deci`: vLLM runs it with its class DeciLM, with `--trust-remote-code`."
        if not query and not keys:
            return text
        return (
            f"{text} There all layers have the same number of query heads, so {query} query heads "
            f"and {keys} key-value heads of zeros were added in all: the function is the same, and "
            "`params` counts them. Format `folded` does without."
        )

    def build(self, loaded: LoadedModel, state: StateDict, candidate: Candidate) -> PreTrainedModel:
        """A model of class `DeciLMForCausalLM` of the modeling file."""
        left = layout(loaded, candidate)
        heads = shared_heads(left)
        biased = frozenset(kind for block in left.blocks for kind in block.biased)
        wide = dict(state)
        for block in left.kept:
            widths = replace(block.widths, heads=heads.query)
            widths = replace(widths, kv_heads=heads.keys.get(block.index, widths.kv_heads))
            for matrix in loaded.family.matrices:
                if matrix.sublayer not in block.dropped:
                    name = f"{left.path}.{block.index}.{matrix.path}"
                    wide |= filled(name, matrix, block, Target(widths, biased), state)
        config = DECI.config.from_dict(_settings(loaded, left, heads, biased))
        config._attn_implementation = loaded.model.config._attn_implementation
        return assemble(DECI.head, config, wide, self.name_of(loaded, candidate))

    def name_of(self, loaded: LoadedModel, candidate: Candidate) -> Callable[[str], str]:
        """Blocks have other numbers."""
        left = layout(loaded, candidate)
        return renumbered(left.names, left.kept)

    def files(self, loaded: LoadedModel) -> tuple[Path, ...]:
        """The Python files that ``auto_map`` names."""
        return DECI.files


def shared_heads(left: Layout) -> HeadCounts:
    """The number of query heads that costs the fewest parameters, and the key-value heads with it.

    Each attention has at least its own query heads in each of at least its own groups.
    """
    kept = {block.index: block.widths for block in left.having("attention")}
    choices = []
    for query in range(max(widths.heads for widths in kept.values()), left.dense.heads + 1):
        keys = {
            index: _groups(query, widths.kv_heads, widths.heads // widths.kv_heads)
            for index, widths in kept.items()
        }
        found = {index: groups for index, groups in keys.items() if groups is not None}
        if len(found) == len(kept):
            # A key and a value are as large as a query and its share of the output.
            choices.append((query * len(kept) + sum(found.values()), query, found))
    _, query, found = min(choices, key=lambda choice: choice[:2])
    added = query * len(kept) - sum(widths.heads for widths in kept.values())
    more = sum(found.values()) - sum(widths.kv_heads for widths in kept.values())
    return HeadCounts(query, found, (added, more))


def _groups(query: int, least: int, within: int) -> int | None:
    """The fewest groups, but at least these, that share out query heads, enough to each."""
    fitting = (g for g in range(least, query + 1) if query % g == 0 and query // g >= within)
    return next(fitting, None)


def _settings(
    loaded: LoadedModel, left: Layout, heads: HeadCounts, biased: frozenset[SubLayerName]
) -> dict[str, Any]:
    """The content of the config."""
    dense, block = loaded.model.config.to_dict(), loaded.family.blocks(loaded.model)[0]
    known = {field.name for field in fields(DECI.config)}
    own: Any = block
    attention = own.self_attn.o_proj.bias is not None or "attention" in biased
    return {name: value for name, value in dense.items() if name in known} | {
        "num_hidden_layers": len(left.kept),
        "num_attention_heads": heads.query,
        "num_key_value_heads": max(heads.keys.values()),
        "head_dim": left.dense.head_dim,
        "attention_bias": attention,
        "qkv_bias": attention or own.self_attn.q_proj.bias is not None,
        "mlp_bias": own.mlp.down_proj.bias is not None or "mlp" in biased,
        "block_configs": [_entry(kept, heads) for kept in left.kept],
        "auto_map": DECI.auto_map,
    }


def _entry(block: Block, heads: HeadCounts) -> dict[str, dict[str, Any]]:
    """What ``block_configs`` says of one block."""
    attention, mlp = (kind in block.dropped for kind in SUBLAYERS)
    size = None if attention else heads.query // heads.keys[block.index]
    return {
        "attention": {
            "no_op": attention,
            "n_heads_in_group": size,
            "replace_with_linear": False,
        },
        "ffn": {"no_op": mlp, "intermediate_size": None if mlp else block.widths.channels},
    }
