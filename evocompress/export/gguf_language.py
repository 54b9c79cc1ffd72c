"""The language model within a model of several parts, which is what a GGUF file holds of it.

llama.cpp reads what sees images or hears sounds, and its projector, from a second file (``mmproj``)
that its own converter writes.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from transformers import PreTrainedModel

from evocompress.models.families import Family
from evocompress.models.families.uneven import text_config
from evocompress.models.loading import LoadedModel

BODY, HEAD = "model", "lm_head"
"""What most language models call what is below the head, and the head."""


def language_type(loaded: LoadedModel) -> str:
    """The type of a model, or of the language model within one of several parts."""
    if has_other_parts(loaded.model):
        kind: str = text_config(loaded.model.config).model_type
        return kind
    return loaded.family.model_type


def has_other_parts(model: PreTrainedModel) -> bool:
    """Whether a model is more than a language model."""
    return text_config(model.config) is not model.config


def language_body(family: Family, model: PreTrainedModel) -> PreTrainedModel:
    """A model, or what is below the head of the language model within one of several parts.

    Its config is that of the language model.
    """
    if not has_other_parts(model):
        return model
    body = model.get_submodule(_body_path(family))
    assert isinstance(body, PreTrainedModel)
    return body


def language_tensors(family: Family, model: PreTrainedModel) -> Iterator[tuple[str, str, Tensor]]:
    """For each tensor of a language model its name, what it is called there when alone, and itself.

    Those of other parts are left out.
    """
    if not has_other_parts(model):
        yield from ((name, name, tensor) for name, tensor in model.state_dict().items())
        return
    head = model.get_output_embeddings()
    output = next(path for path, module in model.named_modules() if module is head)
    paths = {f"{output}.": f"{HEAD}.", f"{_body_path(family)}.": f"{BODY}."}
    for name, tensor in model.state_dict().items():
        for path, alone in paths.items():
            if name.startswith(path):
                yield name, f"{alone}{name.removeprefix(path)}", tensor


def _body_path(family: Family) -> str:
    """Where the module with the blocks is."""
    return family.layers_path.rpartition(".")[0]
