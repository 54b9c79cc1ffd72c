"""Calibration images: pixel values, as an image processor made them, in safetensors files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from evocompress.core.errors import DataError, one_line
from evocompress.core.regular import check_regular
from evocompress.models.dummy_inputs import image_shape
from evocompress.models.loading import LoadedModel

PIXELS = "pixel_values"
LABELS = "labels"


@dataclass(frozen=True, eq=False)
class Images:
    """Images of one size.

    Attributes:
        pixels: (N, C, H, W), float32.
        labels: Their classes (N,), int64; -1 where the files tell none.
        left_out: How many were passed over.
    """

    pixels: Tensor
    labels: Tensor
    left_out: int = 0


def image_bytes(image: Tensor) -> bytes:
    """What tells one image (C, H, W) from another."""
    return image.numpy().tobytes()


def read_images(
    source: str, count: int, loaded: LoadedModel, *, seen: frozenset[bytes] = frozenset()
) -> Images:
    """The first images of a folder, file by file in the order of names.

    Args:
        source: A folder of safetensors with ``pixel_values`` (N, C, H, W) and perhaps ``labels``.
        count: How many.
        loaded: The model that they are for.
        seen: Images that are passed over, by `image_bytes`.

    Raises:
        DataError: There is no such folder, a file is damaged, or there are too few images or
            images of another size than the model's.
    """
    parts = list(_enough(_files(source, loaded), count, loaded, seen))
    found = sum(len(part.pixels) for part in parts)
    left_out = sum(part.left_out for part in parts)
    if found < count:
        known = f", {left_out} of which library or search have" if left_out else ""
        raise DataError(
            f"{source} has only {found + left_out} images, but {count + left_out} are needed"
            f"{known}: lower calibration.library_sequences, search_sequences or heldout_sequences"
        )
    pixels, labels = (torch.cat([getattr(part, name) for part in parts]) for name in FIELDS)
    return Images(pixels[:count], labels[:count], left_out)


def _files(source: str, loaded: LoadedModel) -> list[Path]:
    folder = Path(source).expanduser()
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if not files:
        raise DataError(
            f"calibration source {source}: {loaded.source} reads images, so give a folder of "
            f"safetensors with {PIXELS} (N, C, H, W), as its image processor gives them, and "
            f"perhaps {LABELS} (N,)"
        )
    return files


def images(source: str, loaded: LoadedModel) -> Iterator[Tensor]:
    """The images (C, H, W) of a folder, file by file in the order of names."""
    for file in _files(source, loaded):
        yield from _read(file, loaded).pixels


FIELDS = ("pixels", "labels")


def _enough(
    files: list[Path], count: int, loaded: LoadedModel, seen: frozenset[bytes]
) -> Iterator[Images]:
    for file in files:
        images = _unseen(_read(file, loaded), seen)
        yield images
        count -= len(images.pixels)
        if count <= 0:
            return


def _unseen(images: Images, seen: frozenset[bytes]) -> Images:
    """Those images that were not seen."""
    new = torch.tensor([image_bytes(image) not in seen for image in images.pixels]).bool()
    return Images(images.pixels[new], images.labels[new], int((~new).sum()))


def _read(file: Path, loaded: LoadedModel) -> Images:
    check_regular(file, DataError)
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise DataError(f"image file {file} cannot be read: {one_line(error)}") from None
    pixels = tensors.get(PIXELS)
    if pixels is None or pixels.ndim != 4 or not pixels.is_floating_point():
        raise DataError(f"image file {file} has no tensor {PIXELS} of floats (N, C, H, W)")
    if tuple(pixels.shape[1:]) != (shape := image_shape(loaded.model)):
        raise DataError(
            f"image file {file}: images are {tuple(pixels.shape[1:])}, but {loaded.source} takes "
            f"{shape} (channels, height, width)"
        )
    labels = tensors.get(LABELS, torch.full((len(pixels),), -1))
    if labels.shape != pixels.shape[:1] or labels.is_floating_point():
        raise DataError(f"image file {file}: {LABELS} must hold an integer for each image")
    return Images(pixels.float(), labels.long())
