"""Where a checkpoint comes from, whether it is whole, and reading it with transformers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    FineGrainedFP8Config,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    modeling_gguf_pytorch_utils,
)
from transformers.utils import logging as transformers_logging
from transformers.utils.quantization_config import Mxfp4Config

from evocompress.core.errors import ModelError, one_line
from evocompress.core.regular import check_regular
from evocompress.models.checkpoint_files import (
    CONFIG,
    check_folder,
    read_checkpoint_json,
    weight_files,
)
from evocompress.models.families.uneven import is_compressed
from evocompress.models.gguf_kind import check_language_model, check_read_whole
from evocompress.models.stored_tensors import (
    Stored,
    check_loaded,
    check_stored_shapes,
    check_types,
    left_out,
    stored_tensors,
    without_missing,
)

DType = Literal["auto", "float32", "bfloat16", "float16"]

GGUF = ".gguf"
PREPROCESSOR = "preprocessor_config.json"
LEGAL = ("license", "licence", "copying", "copyright", "notice", "use_policy", "agreement")
"""What names of files have in them that say under which terms a model may be used."""

HUB_FILES = [
    *("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py", "*.tiktoken", "README.md"),
    *(f"*{''.join(f'[{letter}{letter.upper()}]' for letter in word)}*" for word in LEGAL),
]
# Copies of the weights in other layouts, and folders for other runtimes.
NOT_HUB_FILES = ["consolidated*", "*/*.safetensors", "*/*.txt", "*/*.py", "onnx/*", "openvino/*"]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on this machine.

    Attributes:
        folder: Where its files are.
        gguf: Name of the GGUF file in `folder`, or ``None`` for safetensors.
        trust_remote_code: Run code that comes with it.
        packing: How its weights are quantised; empty where they are not.
    """

    folder: Path
    gguf: str | None = None
    trust_remote_code: bool = False
    packing: str = ""

    def __str__(self) -> str:
        return str(self.folder / self.gguf if self.gguf else self.folder)

    @property
    def options(self) -> dict[str, Any]:
        """What transformers must be told to find and read it."""
        return {
            "gguf_file": self.gguf,
            "trust_remote_code": self.trust_remote_code,
            "local_files_only": True,
        }


def locate(source: str, *, trust_remote_code: bool = False) -> Checkpoint:
    """Find a checkpoint and check that its files are there and whole.

    The source is a local folder, a ``.gguf`` file or a hub id, whose files are downloaded.

    Raises:
        ModelError: There is no such checkpoint, or a file of it is missing or damaged.
    """
    path = Path(source).expanduser()
    if source.endswith(GGUF):
        check_gguf(path)
        check_language_model(path)
        return Checkpoint(path.parent, path.name)
    check_model_path(path)
    folder = path if path.is_dir() else _download(source)
    return local_checkpoint(folder, trust_remote_code=trust_remote_code)


def check_model_path(path: Path) -> None:
    """Refuses a file in the place of a model's folder, and a folder in that of a GGUF file."""
    if path.is_file():
        raise ModelError(
            f"no model at {str(path)!r}: this is a file, and no {GGUF} one: give the model's folder"
        )
    packed = sorted(path.glob(f"*{GGUF}"))
    if packed and not (path / CONFIG).exists():
        raise ModelError(
            f"no model at {str(path)!r}: the folder has no {CONFIG}, but a GGUF file, which is "
            f"given by its own name: {packed[0]}"
        )


def local_checkpoint(folder: Path, *, trust_remote_code: bool = False) -> Checkpoint:
    """The checkpoint in a folder, whose files are checked as `locate` does.

    Raises:
        ModelError: The folder holds no checkpoint, or a file of it is missing or damaged.
    """
    packed = check_folder(folder)
    return Checkpoint(folder, trust_remote_code=trust_remote_code, packing=packed)


def model_type(checkpoint: Checkpoint) -> tuple[str, list[str]]:
    """The model type and the classes that ``config.json`` names, read without transformers.

    The checkpoint is of safetensors: a GGUF file tells its architecture only when it is read. There
    is mostly one class; none where none is named.

    Raises:
        ModelError: ``config.json`` names no type, or classes that are no names.
    """
    path = checkpoint.folder / CONFIG
    return type_and_classes(path, read_checkpoint_json(path))


def type_and_classes(path: object, config: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The model type and the classes that a config names.

    Raises:
        ModelError: It names no type, or classes that are no names.
    """
    kind, classes = config.get("model_type"), config.get("architectures") or []
    if not isinstance(kind, str):
        raise ModelError(f"{path} names no model_type, so its family is unknown: add it there")
    if config.get("configuration_files"):
        raise ModelError(f"{path} points to other configs (configuration_files): put the right one")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ModelError(f"{path}: architectures must be a list of names of classes")
    return kind, classes


def complete_image_size(model: PreTrainedModel, folder: Path) -> None:
    """Has a model's config tell the size of its images, if only the image processor's does."""
    path = folder / PREPROCESSOR
    if hasattr(model.config, "image_size") or not path.is_file():
        return
    settings = read_checkpoint_json(path)
    cropped = settings.get("do_center_crop", True) and settings.get("crop_size")
    sides = _sides(cropped or settings.get("size"))
    if sides is not None:
        model.config.image_size = sides


def _sides(size: Any) -> list[int] | None:
    """Height and width that an image processor gives images; ``None`` where they may vary."""
    if isinstance(size, dict):
        height = size.get("height", size.get("shortest_edge"))
        size = [height, size.get("width", height)]
    sides = [size, size] if isinstance(size, int) else size
    fixed = isinstance(sides, list) and len(sides) == 2
    return sides if fixed and all(isinstance(side, int) and side > 0 for side in sides) else None


def _download(source: str) -> Path:
    try:
        return Path(
            snapshot_download(source, allow_patterns=HUB_FILES, ignore_patterns=NOT_HUB_FILES)
        )
    except HFValidationError:
        raise ModelError(f"no model at {source!r}: there is no such folder") from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"no model {source!r}: neither a local folder nor on the Hugging Face hub "
            "(a private or gated model needs `hf auth login`)"
        ) from None
    except OSError as error:
        raise ModelError(
            f"no model {source!r}: there is no such folder, and it cannot be had from the "
            f"Hugging Face hub ({one_line(error)})"
        ) from None


def check_gguf(path: Path) -> None:
    """Whether a GGUF file is there, and what reads it.

    Raises:
        ModelError: It is not, or a package is not installed.
    """
    check_regular(path, ModelError)
    if not path.is_file():
        raise ModelError(f"no model at {path}: there is no such file")
    if find_spec("gguf") is None or find_spec("accelerate") is None:
        raise ModelError(
            f"reading {path.name} needs packages that are not installed: "
            "pip install 'evocompress[gguf]'"
        )


def read_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint.

    Raises:
        ModelError: It has none, or one that cannot be read.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            checkpoint.folder, **checkpoint.options
        )
    except Exception as error:  # parsers of a damaged file fail with any type of error
        raise ModelError(
            f"no tokenizer can be read from {checkpoint}: {one_line(error)}"
        ) from error
    return tokenizer


def read_model(
    checkpoint: Checkpoint,
    dtype: DType | torch.dtype,
    auto: Any = AutoModelForCausalLM,
    unused: str = "",
) -> PreTrainedModel:
    """The model of a checkpoint, on the CPU, as the class `auto` of transformers reads it.

    ``auto`` is the checkpoint's own dtype; float32 for GGUF, whose weights are unpacked. `unused`
    is a regular expression of tensors that it may hold or lack, because nothing wanted is computed
    with them; others that have no place in the model are refused.

    Raises:
        ModelError: It cannot be read, or does not hold the model that its config describes.
    """
    try:
        if checkpoint.gguf is None:
            know_compressed(model_type(checkpoint)[0])
        stored = _check_stored(checkpoint, auto)
        answer: Any = auto.from_pretrained(
            checkpoint.folder,
            config=None if checkpoint.gguf else without_kernels(_config(checkpoint)),
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told in `check_loaded`, by name
            quantization_config=_unpacking(checkpoint),
            **checkpoint.options,
        )
    except ModelError:
        raise
    except Exception as error:  # parsers of a damaged file fail with any type of error
        raise ModelError(f"the model in {checkpoint} cannot be read: {one_line(error)}") from error
    model: Any = answer[0]
    if checkpoint.packing:
        model._weight_conversions = None  # saving would quantise again
    check_loaded(
        checkpoint, answer[1] | {"unexpected_keys": left_out(model, stored, answer[1])}, unused
    )
    without_missing(model, answer[1]["missing_keys"])
    found: PreTrainedModel = model
    return found


def _unpacking(checkpoint: Checkpoint) -> Any:
    """What has transformers undo the quantisation of weights."""
    if checkpoint.gguf:
        return GgufConfig(dequantize=True)
    kinds = {"": None, "fp8": FineGrainedFP8Config, "mxfp4": Mxfp4Config}
    kind = kinds[checkpoint.packing]
    return kind(dequantize=True) if kind else None


def know_compressed(kind: str) -> None:
    """Has transformers know the classes of a compressed checkpoint, without the code beside it.

    Args:
        kind: A model type; for others nothing is done.
    """
    if is_compressed(kind):
        from evocompress.models.modeling import register  # which imports the code of every family

        register()


def _check_stored(checkpoint: Checkpoint, auto: Any) -> dict[str, Stored]:
    """Whether the files hold what the config describes, as far as their headers tell."""
    config = without_kernels(_config(checkpoint))
    with torch.device("meta"):
        outline: PreTrainedModel = auto.from_config(
            config, trust_remote_code=checkpoint.trust_remote_code
        )
    if checkpoint.gguf:
        check_read_whole(checkpoint.folder / checkpoint.gguf, outline)
        return {}
    if checkpoint.packing:
        return {}  # they have other types, shapes and names than the model's
    tensors = stored_tensors(weight_files(checkpoint.folder))
    check_types(checkpoint, tensors)
    expected = {name: tensor.shape for name, tensor in outline.state_dict().items()}
    check_stored_shapes(checkpoint, tensors, expected, outline.base_model_prefix)
    return tensors


def _config(checkpoint: Checkpoint) -> Any:
    """The config in transformers' own class."""
    return AutoConfig.from_pretrained(checkpoint.folder, **checkpoint.options)


def without_kernels(config: PreTrainedConfig) -> PreTrainedConfig:
    """A config, changed in place, that leaves the choice of kernels to transformers.

    A checkpoint must not choose them: they may not be installed, or be code of somebody's on the
    hub.
    """
    if config._attn_implementation != "eager":
        config._attn_implementation = None
    config._experts_implementation = None
    return config


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences the progress bars and warnings of transformers for a while."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    # The reader of GGUF files draws a bar of its own.
    no_bar = partial(tqdm, disable=True)
    try:
        with patch.object(modeling_gguf_pytorch_utils, "tqdm", no_bar):
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
