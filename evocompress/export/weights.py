"""The weights of a compressed model, gathered without touching the dense model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from evocompress.models import LoadedModel
from evocompress.prune import Form, LevelStore, Source, follower_tensors, form_of
from evocompress.types import DENSE, Candidate

State = Mapping[str, Tensor]
"""The tensors of a compressed model by the names of the dense one."""


class LevelWeights(LevelStore, Protocol):
    """What a checkpoint needs of a level library."""

    @property
    def fingerprint(self) -> str:
        """Identifies the library's contents."""
        ...


def compressed_state(
    loaded: LoadedModel, library: LevelWeights | None, candidate: Candidate
) -> dict[str, Tensor]:
    """The dense model's state with the candidate's matrices and biases in place.

    The tensors may be the model's and the library's own, not copies: only read them. Those of
    dropped sub-layers are there as well, and dense.

    Raises:
        LibraryError: The candidate needs a level that the library lacks, or there is none.
    """
    state: dict[str, Tensor] = dict(loaded.model.state_dict())
    source = Source(loaded, dict(state), library, follower_tensors(loaded))
    names, levels = loaded.family.block_names, candidate.by_name
    for index in range(len(loaded.family.blocks(loaded.model))):
        for matrix in loaded.family.matrices:
            form = form_of(names[index], matrix, levels)
            state |= source.tensors(index, matrix, form)
        width = levels.get(f"{names[index]}.mlp", DENSE)
        for name, tensors in source.followers(index, Form(width=width)).items():
            state |= {f"{name}.{part}": tensor for part, tensor in tensors.items()}
    return state


def assemble(
    cls: type[PreTrainedModel],
    config: PreTrainedConfig,
    state: State,
    name_of: Callable[[str], str],
) -> PreTrainedModel:
    """A model of class `cls` that holds the tensors of `state`, to be saved and not to be run.

    What is computed rather than stored, such as rotary frequencies, stays on the meta device.

    Args:
        cls: The class to make.
        config: Its config.
        state: By the names of the dense model; what the new model lacks is left out.
        name_of: The name in `state` of a parameter of the new model.
    """
    with torch.device("meta"):
        model = cls(config)
    model.load_state_dict({name: state[name_of(name)] for name in model.state_dict()}, assign=True)
    model.tie_weights()
    model.eval()
    return model
