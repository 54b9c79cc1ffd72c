"""Format ``stock``: the model's own class with fewer blocks, or with one width for all of them."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar, cast

from transformers import PreTrainedConfig, PreTrainedModel

from evocompress.core.types import Candidate
from evocompress.export.configs import (
    are_channels_of_mlps_alone,
    cut_config,
    is_taken,
    set_widths,
    use_of_index,
)
from evocompress.export.layout import SUBLAYERS, Layout, layout, no_block_left, second_round
from evocompress.export.pretrained import Pretrained
from evocompress.export.running import OWN_CLASS, Programs, Running
from evocompress.export.weights import StateDict, assemble, renumbered
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
        left = layout(loaded, candidate)
        checks = (_stages, _alone, renumbering, _biased, _uneven, _refused)
        reasons = (check(left, loaded) for check in checks)
        return no_block_left(left) or next(filter(None, reasons), None)

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
    config = cut_config(loaded.model.config, left.kept)
    set_widths(config, left.kept[0].widths, left.dense)
    if loaded.family.mixture is not None:
        setattr(config, loaded.family.mixture.count_key, len(left.kept[0].experts))
    return config


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


def _alone(left: Layout, _: LoadedModel) -> str | None:
    unit = left.first(lambda block, kind: kind in block.dropped and not block.gone)
    return unit and f"cannot leave out {unit} alone"


def renumbering(left: Layout, loaded: LoadedModel) -> str | None:
    """The obstacle of a model whose blocks must keep their numbers."""
    unit = left.first(lambda block, sublayer: sublayer in block.dropped)
    use = use_of_index(loaded.model.config)
    if unit is None or not use:
        return None
    return f"cannot leave out {unit}, because this {loaded.family.model_type} model {use}"


def _biased(left: Layout, _: LoadedModel) -> str | None:
    unit = left.first(lambda block, sublayer: sublayer in block.biased)
    return unit and f"cannot give the output of {unit} a bias"


def _uneven(left: Layout, loaded: LoadedModel) -> str | None:
    if isinstance(loaded.family, Convolutional):
        unit = left.first(lambda block, sublayer: sublayer in block.narrow)
        return unit and f"cannot make {unit} narrower than its stage says"
    experts = [len(block.experts) for block in left.kept]
    if len(set(experts)) > 1:
        fewest = left.kept[experts.index(min(experts))]
        return f"cannot give {left.path}.{fewest.index}.mlp fewer experts than other blocks"
    uneven = [kind for kind in SUBLAYERS if len({block.width(kind) for block in left.kept}) > 1]
    unit = left.first(lambda block, sublayer: sublayer in uneven and sublayer in block.narrow)
    return unit and f"cannot make {unit} narrower than in other blocks"


def _refused(left: Layout, loaded: LoadedModel) -> str | None:
    first, whole = left.kept[0], _config(left, loaded)
    plain = loaded.family.mixture is None
    if "mlp" in first.narrow and plain and not are_channels_of_mlps_alone(loaded):
        return (
            f"cannot make {left.path}.{first.index}.mlp narrower, because no setting of "
            f"{type(whole).__name__} is the width of the blocks' MLPs alone"
        )
    if "attention" not in first.narrow or is_taken(whole, loaded):
        return None
    config = text_config(whole)
    return (
        f"cannot write {left.path}.{first.index}.attention, because no "
        f"{type(config).__name__} of hidden size {config.hidden_size} has {first.widths.heads} "
        f"heads of {first.widths.head_dim}"
    )
