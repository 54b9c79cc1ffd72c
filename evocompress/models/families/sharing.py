"""Blocks that run one module, as those of Zamba run one transformer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn
from transformers import PreTrainedConfig

from evocompress.models.families.uneven import missing


def share_modules(
    sharing: Sequence[int], path: str, config: PreTrainedConfig, blocks: Iterable[nn.Module]
) -> None:
    """Give blocks whose modules have the same parameters, in place, the same module.

    Whatever that is told holds for all of them.

    Args:
        sharing: For each block the first that shares it; -1 for none. Empty where none do.
        path: Of the module in a block.
        config: Of the model, some of whose blocks may have lost it.
        blocks: All of it.
    """
    there: dict[int, nn.Module] = {}
    for index, (block, first) in enumerate(zip(blocks, sharing, strict=False)):
        if first >= 0 and "attention" not in missing(config, index):
            own = there.setdefault(first, block.get_submodule(path))
            block.set_submodule(path, own)
