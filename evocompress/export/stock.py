"""Format ``stock``: the model's own class with fewer blocks, or with one width for all of them."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any, ClassVar, cast

from transformers import PreTrainedConfig, PreTrainedModel

from evocompress.core.types import Candidate
from evocompress.core.widths import Widths
from evocompress.export.configs import (
    are_channels_of_mlps_alone,
    cut_config,
    expert_key,
    is_taken,
    set_widths,
    whole_widths,
)
from evocompress.export.layout import (
    SUBLAYERS,
    Layout,
    layout,
    no_attention_left,
    no_block_left,
    second_round,
)
from evocompress.export.pretrained import Pretrained
from evocompress.export.renumbering import renumbering
from evocompress.export.running import OWN_CLASS, Programs, Running
from evocompress.export.weights import StateDict, assemble, renumbered
from evocompress.models.families import SubLayerName
from evocompress.models.families.convolutional import Convolutional
from evocompress.models.families.uneven import text_config
from evocompress.models.loading import LoadedModel


class Stock(Pretrained):
    """Zeros in matrices, whole removed blocks and one width for all layers, nothing else."""

    programs: ClassVar[Programs] = {"transformers": Running(OWN_CLASS), "vllm": Running(OWN_CLASS)}

    def obstacle(self, loaded: LoadedModel, candidate: Candidate) -> str | None:
        """What differs from layer to layer, or what the class cannot be configured to."""
        if compressed := second_round(loaded):
            return compressed
        if loaded.family.alone:
            cut = next((name for name, lv in candidate.levels if lv.drop or lv.narrow), None)
            return cut and f"cannot cut {cut}, because the blocks of this model are not known"
        left = layout(loaded, candidate)
        checks = (_stages, _alone, renumbering, _biased, _uneven, _lost_experts, _refused)
        reasons = (check(left, loaded) for check in checks)
        gone = no_block_left(left) or no_attention_left(left, loaded)
        return gone or next(filter(None, reasons), None)

    def build(self, loaded: LoadedModel, state: StateDict, candidate: Candidate) -> PreTrainedModel:
        """A model of the dense model's class with fewer or narrower blocks."""
        config = _config(layout(loaded, candidate), loaded)
        return assemble(type(loaded.model), config, state, self.name_of(loaded, candidate))

    def name_of(self, loaded: LoadedModel, candidate: Candidate) -> Callable[[str], str]:
        """Blocks have other numbers."""
        left = layout(loaded, candidate)
        return renumbered(left.names, left.kept)


def _config(left: Layout, loaded: LoadedModel) -> PreTrainedConfig:
    """The config of a model whose layers are all as wide as the first one left."""
    if isinstance(loaded.family, Convolutional):
        return _staged_config(left, loaded)
    if loaded.family.alone:
        return copy.deepcopy(loaded.model.config)
    config = cut_config(loaded.model.config, left.kept, loaded.family.calls)
    set_widths(config, _common(left), whole_widths(loaded))
    mixture = loaded.family.mixture
    if mixture is not None and any(block.reduced for block in left.kept):
        count = max(len(block.experts) for block in left.kept)
        text = text_config(config)
        key = expert_key(text, mixture.count)
        assert key
        setattr(text, key, count)
    return config


def _common(left: Layout) -> Widths:
    """The widths of the sub-layers left, which are the same for all that are narrow."""
    each = [block.widths for block in left.kept]
    having = [block.widths for block in left.kept if "attention" in block.sublayers] or each
    heads, keys = max(one.heads for one in having), max(one.kv_heads for one in having)
    return Widths(heads, keys, left.dense.head_dim, max(one.channels for one in each))


def _staged_config(left: Layout, loaded: LoadedModel) -> PreTrainedConfig:
    """The config of a CNN with fewer layers in its stages."""
    config: Any = copy.deepcopy(loaded.model.config)
    stages = [left.names[block.index].rpartition(".")[0] for block in left.kept]
    config.depths = list(Counter(stages).values())
    return cast(PreTrainedConfig, config)


def _stages(left: Layout, loaded: LoadedModel) -> str | None:
    """The obstacle of a CNN whose stages begin with another layer: no stage can be empty."""
    if not isinstance(loaded.family, Convolutional):
        return None
    firsts = (b for b in left.blocks if left.names[b.index].endswith(".0") and b not in left.kept)
    first = next(firsts, None)
    return (
        None
        if first is None
        else f"cannot leave out {left.names[first.index]}, the first layer of its stage"
    )


def _alone(left: Layout, _: LoadedModel | None = None) -> str | None:
    unit = left.first(lambda block, kind: kind in block.dropped and not block.gone)
    return unit and f"cannot leave out {unit} alone"


def _biased(left: Layout, _: LoadedModel | None = None) -> str | None:
    unit = left.first(lambda block, sublayer: sublayer in block.biased)
    return unit and f"cannot give the output of {unit} a bias"


def _uneven(left: Layout, loaded: LoadedModel) -> str | None:
    if isinstance(loaded.family, Convolutional):
        unit = left.first(lambda block, sublayer: sublayer in block.narrow)
        return unit and f"cannot make {unit} narrower than its stage says"
    return _experts(left) or _narrower(left, SUBLAYERS)


def _experts(left: Layout) -> str | None:
    """The obstacle of mixtures with other numbers of experts."""
    mixed = [block for block in left.kept if block.experts and "mlp" not in block.dropped]
    experts = [len(block.experts) for block in mixed]
    if len(set(experts)) > 1:
        fewest = mixed[experts.index(min(experts))]
        return f"cannot give {left.path}.{fewest.index}.mlp fewer experts than other blocks"
    return None


def _narrower(left: Layout, kinds: Collection[SubLayerName]) -> str | None:
    """The obstacle of some kinds of sub-layers that are not as wide everywhere."""
    uneven = [kind for kind in kinds if len(_widths(left, kind)) > 1]
    unit = left.first(lambda block, sublayer: sublayer in uneven and sublayer in block.narrow)
    return unit and f"cannot make {unit} narrower than in other blocks"


def _lost_experts(left: Layout, loaded: LoadedModel) -> str | None:
    """The obstacle of experts that a config cannot tell to be gone."""
    lost = next((b.index for b in left.kept if b.reduced and b.experts), None)
    if lost is None:
        return None
    mixture, config = loaded.family.at(lost).mixture, text_config(loaded.model.config)
    assert mixture is not None
    known = expert_key(config, mixture.count)
    if known and not mixture.whole_router:
        return None
    why = (
        "whose router chooses groups of them, and knows those that are gone as well"
        if known
        else f"because no setting of {type(config).__name__} is their number"
    )
    return f"cannot leave out experts of {left.path}.{lost}.mlp, {why}"


def uneven_experts(left: Layout) -> str | None:
    """What a format cannot hold that knows one number and one width of experts for all blocks."""
    mlps: tuple[SubLayerName, ...] = ("mlp",)
    return _experts(left) or _narrower(left, mlps)


def differing_obstacle(left: Layout, differing: Collection[SubLayerName]) -> str | None:
    """What a format cannot hold that knows whole blocks, of which some kinds of parts differ."""
    alike = [kind for kind in SUBLAYERS if kind not in differing]
    return _alone(left) or _biased(left) or _experts(left) or _narrower(left, alike)


def _widths(left: Layout, kind: SubLayerName) -> set[tuple[int, ...]]:
    """The widths of a kind of sub-layer that are left, but for mixers without heads."""
    having = (block for block in left.kept if kind in block.sublayers)
    blocks = (block for block in having if kind not in block.dropped)
    return {block.width(kind) for block in blocks} - {(0, 0)}


def _refused(left: Layout, loaded: LoadedModel) -> str | None:
    """The obstacle of a config that the class refuses, or of which it makes other blocks."""
    first = left.kept[0]
    narrow = any(block.narrow for block in left.kept)
    several = len(getattr(loaded.family, "kinds", ())) > 1
    if isinstance(loaded.family, Convolutional) or not (narrow or several):
        return None
    if "mlp" in first.narrow and not are_channels_of_mlps_alone(loaded):
        return (
            f"cannot make {left.path}.{first.index}.mlp narrower, because no setting of "
            f"{type(loaded.model.config).__name__} is the width of the blocks' MLPs alone"
        )
    try:
        whole = _config(left, loaded)
        if is_taken(whole, loaded, left.kept):
            return None
    except AttributeError:  # of a setting that follows from others
        whole = loaded.model.config
    config = text_config(whole)
    name, kind = type(config).__name__, "attention" if "attention" in first.narrow else "mlp"
    if kind == "attention":
        return (
            f"cannot write {left.path}.{first.index}.attention, because no {name} of hidden size "
            f"{config.hidden_size} has {first.widths.heads} heads of {first.widths.head_dim}"
        )
    return f"cannot write {left.path}.{first.index}.{kind}, because no {name} says what is left"
