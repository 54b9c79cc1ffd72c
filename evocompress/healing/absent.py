"""Models whose blocks are not needed for a while, and take no memory then."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import torch
from torch import Tensor, nn

from evocompress.core.files import make_folder, naming_disk_errors
from evocompress.export.folder import check_room
from evocompress.models.device_copy import to_device
from evocompress.models.loading import LoadedModel


@contextmanager
def absent(models: Sequence[LoadedModel], folder: Path) -> Iterator[None]:
    """Has the weights of the blocks of models in files without names in a folder.

    Embeddings, the final norm and the head stay. Where blocks are streamed only their copies on the
    device go.

    Raises:
        ExportError: The disk has no room for them.
        RunError: The disk is full.
    """
    with ExitStack() as stack:
        for loaded in models:
            if loaded.cache is not None:
                loaded.cache.clear()
            else:
                stack.enter_context(_spilled(loaded, folder))
        yield


@contextmanager
def _spilled(loaded: LoadedModel, folder: Path) -> Iterator[None]:
    blocks = loaded.family.blocks(loaded.model)
    outside = {id(p) for p in _outside(loaded.model, blocks)}
    own = [p for p in blocks.parameters() if id(p) not in outside]
    parameters = sorted(own, key=lambda p: -p.itemsize)  # each begins at a multiple of its own
    make_folder(folder)
    check_room(folder, sum(p.nbytes for p in parameters))
    device = loaded.model.device
    with TemporaryFile(dir=folder) as file:
        with naming_disk_errors(folder / "weights"):
            for parameter in parameters:
                file.write(_bytes(parameter.data).numpy().data)
            file.flush()
        if not parameters:
            yield
            return
        mapped = torch.from_numpy(np.memmap(file, np.uint8, "c"))
    parts = torch.split(mapped, [parameter.nbytes for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.data = part.view(parameter.dtype).view(parameter.shape)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.data = to_device(parameter.data, device, copy=True)


def _bytes(weight: Tensor) -> Tensor:
    return weight.cpu().contiguous().flatten().view(torch.uint8)


def _outside(model: nn.Module, blocks: nn.Module) -> Iterator[nn.Parameter]:
    """Parameters of a model that modules other than its blocks have."""
    within = set(blocks.modules())
    for module in model.modules():
        if module not in within:
            yield from module.parameters(recurse=False)
