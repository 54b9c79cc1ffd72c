"""The weights of a compressed model, gathered without touching the dense model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from evocompress.errors import ExportError
from evocompress.models import LoadedModel
from evocompress.types import Candidate, Level


class LevelWeights(Protocol):
    """What a checkpoint needs of a level library."""

    @property
    def fingerprint(self) -> str:
        """Identifies the library's contents."""
        ...

    def load(self, unit: str, level: Level) -> dict[str, Tensor]:
        """The tensors of a matrix unit at a level, e.g. its ``weight``."""
        ...


def compressed_state(
    loaded: LoadedModel, library: LevelWeights | None, candidate: Candidate
) -> dict[str, Tensor]:
    """The dense model's state with the candidate's matrices in place.

    The tensors are the model's and the library's own, not copies: only read them.

    Raises:
        ExportError: The candidate has compressed matrices and there is no library.
    """
    state = dict(loaded.model.state_dict())
    for name, level in candidate.levels:
        if level.drop:
            continue
        if library is None:
            raise ExportError(
                f"{name} is at level {level.key}, but no level library was given: pass the "
                "library that the search used"
            )
        for key, tensor in library.load(name, level).items():
            state[f"{name}.{key}"] = tensor
    return state


def assemble(
    cls: type[PreTrainedModel],
    config: PreTrainedConfig,
    state: dict[str, Tensor],
    blocks: str,
    kept: Sequence[int],
) -> PreTrainedModel:
    """A model of class `cls` that holds the tensors of `state`, to be saved and not to be run.

    What is computed rather than stored, such as rotary frequencies, stays on the meta device.

    Args:
        cls: The class to make.
        config: Its config.
        state: State of the dense model; what the new model lacks is left out.
        blocks: Module path of the list of blocks.
        kept: For each block of the new model its index in `state`.
    """
    with torch.device("meta"):
        model = cls(config)
    block = re.compile(rf"^{re.escape(blocks)}\.(\d+)\.")

    def old_name(name: str) -> str:
        return block.sub(lambda match: f"{blocks}.{kept[int(match[1])]}.", name)

    model.load_state_dict({name: state[old_name(name)] for name in model.state_dict()}, assign=True)
    model.tie_weights()
    model.eval()
    return model
