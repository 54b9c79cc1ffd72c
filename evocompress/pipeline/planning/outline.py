"""A model without weights: all that its config says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils.hub import cached_file

from evocompress.core.errors import ModelError, one_line
from evocompress.core.regular import check_regular
from evocompress.models.checkpoint_files import packing
from evocompress.models.checkpoints import (
    GGUF,
    DType,
    check_gguf,
    check_model_path,
    complete_image_size,
    know_compressed,
    quiet_transformers,
    type_and_classes,
    without_kernels,
)
from evocompress.models.cpu_dtypes import slow_on_cpu
from evocompress.models.demo import DEMO_SOURCE, demo_checkpoint
from evocompress.models.families import family_named, family_of
from evocompress.models.families.base import prepare
from evocompress.models.gguf_kind import check_read_whole
from evocompress.models.loading import LoadedModel
from evocompress.models.pooling import MODULES
from evocompress.models.stored_tensors import check_counts


def outline(
    source: str,
    dtype: DType = "auto",
    *,
    on_cpu: bool = False,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """A model whose tensors have shapes and no values; it can be planned with and not run.

    The source is a local folder or ``config.json``, a ``.gguf`` file (only what it says of itself
    is read), a hub id (only its config is downloaded), or ``demo:smollm2-135m``. ``auto`` is the
    dtype of the config, float32 for GGUF; `on_cpu`, where it will run on this machine, it may
    become that.

    Raises:
        ModelError: There is no such config, or its family is unknown.
    """
    path: Any = demo_checkpoint().folder if source == DEMO_SOURCE else _place(source)
    remote = {"trust_remote_code": trust_remote_code}
    with quiet_transformers():
        try:
            settings = _settings(path)
            kind, classes = type_and_classes(source, settings)
            # Before transformers reads the numbers, and so that unknown types have none run.
            check_counts(source, settings)
            packing(source, settings)
            task = family_named(kind, classes, embeds=_embeds(path)).task
            know_compressed(kind)
            config = without_kernels(_config(path, settings, remote))
            vars(config).pop("quantization_config", None)
        except ModelError:
            raise
        except Exception as error:  # parsers of a damaged file fail with any type of error
            raise ModelError(
                f"no config of a model can be read from {source}: give a folder, a config.json or "
                f"a hub id ({one_line(error)})"
            ) from None
        chosen = _dtype(config, dtype, on_cpu)
        try:
            with torch.device("meta"):
                model: PreTrainedModel = task.auto.from_config(config, dtype=chosen, **remote)
        except Exception as error:  # numbers of a damaged config fail with any type of error
            raise ModelError(f"{source} is no model for {task.name}: {one_line(error)}") from None
    if str(path).endswith(GGUF):
        check_read_whole(Path(path), model)
    if not task.reads_text:
        complete_image_size(model, Path(path))
    model.eval().requires_grad_(False)
    tokenizer: Any = None
    family = family_of(model)
    prepare(family, model)
    tokens = family.architecture(model).tokens
    return LoadedModel(model, tokenizer, family, source, fingerprint="", tokens=tokens)


def _settings(path: Any) -> dict[str, Any]:
    """What a config says, read without code of its own."""
    where: dict[str, Any] = {"pretrained_model_name_or_path": path}
    if str(path).endswith(GGUF):
        check_gguf(Path(path))
        where = {"pretrained_model_name_or_path": Path(path).parent, "gguf_file": Path(path).name}
    return PreTrainedConfig.get_config_dict(**where)[0]


def _embeds(path: Any) -> bool:
    """Whether there are files of sentence-transformers with a config, in a folder or on the hub."""
    if str(path).endswith(GGUF):
        return False
    return cached_file(path, MODULES, _raise_exceptions_for_missing_entries=False) is not None


def _config(path: Any, settings: dict[str, Any], remote: dict[str, Any]) -> Any:
    """The config in transformers' own class."""
    if not str(path).endswith(GGUF):
        return AutoConfig.from_pretrained(path, **remote)
    return AutoConfig.for_model(**settings | {"dtype": "float32"})


def _place(source: str) -> str | Path:
    """A local folder or file, or what may be a hub id."""
    path = Path(source).expanduser()
    if path.name == "config.json":
        path = path.parent
    check_regular(path / "config.json", ModelError)
    if source.endswith(GGUF):
        return path
    check_model_path(path)
    if path.is_dir():
        return path
    try:
        validate_repo_id(source)
    except HFValidationError:
        raise ModelError(f"no model at {source!r}: there is no such folder") from None
    return source


def _dtype(config: Any, dtype: DType, on_cpu: bool) -> torch.dtype:
    if dtype != "auto":
        found: torch.dtype = getattr(torch, dtype)
        return found
    stored = config.dtype or torch.float32
    stored = getattr(torch, stored) if isinstance(stored, str) else stored
    return torch.float32 if on_cpu and slow_on_cpu(stored) else stored
