"""Random inputs of a model, for what does not depend on their content: times and counts."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evocompress.core.errors import ModelError
from evocompress.models.tasks import Task


def random_batch(
    task: Task, model: PreTrainedModel, sequences: int, tokens: int, seed: int = 0
) -> Tensor:
    """Token ids (sequences, tokens), or images (sequences, C, H, W), on the model's device.

    An image has as many tokens as its size says.
    """
    generator = torch.Generator().manual_seed(seed)
    if task.reads_text:
        vocabulary: int = model.config.get_text_config(decoder=True).vocab_size
        batch = torch.randint(vocabulary, (sequences, tokens), generator=generator)
    else:
        batch = torch.rand(sequences, *image_shape(model), generator=generator)
    return batch.to(model.device)


def image_shape(model: PreTrainedModel) -> tuple[int, int, int]:
    """(channels, height, width) of the images that a model takes.

    Raises:
        ModelError: Its config does not tell.
    """
    config = model.config
    size = getattr(config, "image_size", None)
    if size is None:
        raise ModelError(
            f"the config of this {config.model_type} model tells no size of images: put image_size "
            "into its config.json, or a preprocessor_config.json beside it"
        )
    height, width = (size, size) if isinstance(size, int) else size
    return config.num_channels, height, width
