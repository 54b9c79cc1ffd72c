"""The files of a checkpoint: which they are, and whether they are there and whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field
from safetensors import SafetensorError, safe_open

from evocompress.core.errors import ModelError, one_line
from evocompress.core.files import read_as
from evocompress.core.regular import check_regular
from evocompress.models.stored_tensors import check_counts

T = TypeVar("T")

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
UNPACKED = ("fp8", "mxfp4")
"""Ways to quantise that transformers undoes on any machine, without packages of their own."""


class Index(BaseModel):
    """Which file holds which weight."""

    weight_map: dict[str, Annotated[str, Field(pattern=r"^[^/\\]+$")]]


def check_folder(folder: Path) -> str:
    """Every file that the checkpoint names must be there, and as long as its header says.

    Returns:
        How its weights are quantised, as `packing` tells.

    Raises:
        ModelError: One is missing or damaged, or the weights are not those of a whole model.
    """
    for path in folder.glob("*"):  # tokenizers and the like are opened by transformers
        check_regular(path, ModelError)
    config = read_checkpoint_json(folder / CONFIG)
    check_counts(folder / CONFIG, config)
    packed = packing(folder, config)
    if (folder / ADAPTER).is_file():
        raise ModelError(
            f"the checkpoint {folder} has an adapter beside its weights ({ADAPTER}): merge it into "
            "them first, or remove it"
        )
    for path in weight_files(folder):
        _check_safetensors(path)
    return packed


def packing(source: object, config: Mapping[str, Any]) -> str:
    """How the weights of a checkpoint are quantised; empty where they are not.

    Raises:
        ModelError: They are in a way that cannot be undone here.
    """
    settings = config.get("quantization_config")
    if settings is None:
        return ""
    method = settings.get("quant_method") if isinstance(settings, dict) else settings
    if method not in UNPACKED:
        raise ModelError(
            f"the checkpoint {source} holds quantised weights ({method}), which are not read, as "
            f"those of {' and '.join(UNPACKED)} are: use the model it was made from"
        )
    return str(method)


def weight_files(folder: Path) -> list[Path]:
    """The files of weights that a checkpoint names."""
    names = {WEIGHTS}
    if not (folder / WEIGHTS).is_file() and (folder / INDEX).is_file():
        names = set(read_file_as(folder / INDEX, Index).weight_map.values())
    return [folder / name for name in sorted(names)]


def read_checkpoint_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint.

    Raises:
        ModelError: The file is missing or damaged.
    """
    if not path.is_file():
        raise ModelError(f"{path.parent} is not a checkpoint: it has no {path.name}")
    return read_file_as(path, dict[str, Any])


def read_file_as(path: Path, shape: type[T]) -> T:
    """The content of a JSON file of a checkpoint, which has a certain shape.

    Raises:
        ModelError: It has not.
    """
    return read_as(path, shape, kind=ModelError, remedy="replace it")


def _check_safetensors(path: Path) -> None:
    if not path.is_file():
        raise ModelError(
            f"the checkpoint {path.parent} lacks {path.name}; only safetensors weights are read, "
            "so convert other formats with save_pretrained first"
        )
    try:
        with safe_open(path, framework="pt"):
            pass
    except SafetensorError as error:
        raise ModelError(f"{path} is damaged or truncated, replace it: {one_line(error)}") from None
