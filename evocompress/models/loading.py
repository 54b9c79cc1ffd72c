"""Loading a model with its tokenizer and family, and fingerprinting it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evocompress.core.config import ModelConfig
from evocompress.core.errors import ModelError
from evocompress.models.checkpoint_files import CONFIG, read_checkpoint_json, weight_files
from evocompress.models.checkpoints import (
    Checkpoint,
    DType,
    complete_image_size,
    know_compressed,
    locate,
    model_type,
    quiet_transformers,
    read_model,
    read_tokenizer,
)
from evocompress.models.config_keys import lasting
from evocompress.models.cpu_dtypes import slow_on_cpu
from evocompress.models.demo import DEMO_SOURCE, demo_checkpoint
from evocompress.models.families import Family, family_named, family_of
from evocompress.models.families.base import prepare
from evocompress.models.families.derivation.derived import ToBeDerived
from evocompress.models.families.derivation.from_config import derived_from
from evocompress.models.families.retasked import with_pooling
from evocompress.models.gguf_conversion import converted
from evocompress.models.pooling import MODULES, POOLING, pooling_of
from evocompress.models.stored_tensors import check_finite, stored_tensors
from evocompress.models.streaming import BlockCache, stream_blocks
from evocompress.models.tasks import Pooling
from evocompress.models.tying import settle_tying


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be compressed.

    Attributes:
        model: In evaluation mode, without gradients, on its device.
        tokenizer: The tokenizer that came with it; ``None`` where it reads no text.
        family: What knows its layout.
        source: As the user named it.
        fingerprint: See `fingerprint`.
        widened: The dtype of a checkpoint that is computed in float32 instead, because this
            processor multiplies that one in software.
        tokens: Of every sequence, where they all have as many: an image's.
        folder: Where the checkpoint's files are; ``None`` for a model that was made in memory.
        cache: Brings blocks to the device when they run; ``None`` where the whole model is there.

    Examples:
        >>> from evocompress.testing.tiny import tiny_loaded
        >>> loaded = tiny_loaded("llama")
        >>> loaded.family.model_type, loaded.stored
        ('llama', torch.float32)
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    family: Family
    source: str
    fingerprint: str
    widened: torch.dtype | None = None
    tokens: int | None = None
    folder: Path | None = None
    cache: BlockCache | None = None

    @property
    def stored(self) -> torch.dtype:
        """The dtype of the weights in checkpoints, whatever it is computed in."""
        return self.widened or self.model.dtype

    def length(self, batch: Tensor) -> int:
        """Tokens of each sequence of a batch, as the blocks see them: those of an image as well."""
        return self.tokens or batch.shape[1]


T = TypeVar("T")


def once(make: Callable[[LoadedModel], T]) -> Callable[[LoadedModel], T]:
    """Keeps what is made of a model in the object, as a `functools.cached_property` is.

    Its weights must not be replaced by others afterwards: make another `LoadedModel` of them.
    """

    @wraps(make)
    def kept(loaded: LoadedModel) -> T:
        own: dict[str, Any] = vars(loaded)
        name = f"_{make.__module__}.{make.__qualname__}"
        if name not in own:
            own[name] = make(loaded)
        found: T = own[name]
        return found

    return kept


def load(
    source: str,
    *,
    dtype: DType = "auto",
    device: str = "auto",
    device_memory: int | None = None,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load a model with its tokenizer.

    Args:
        source: A local folder, a hub id, a ``.gguf`` file (see
            `evocompress.models.gguf_conversion`), or ``demo:smollm2-135m``.
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``auto``: the checkpoint's, but float32
            on a CPU that is slow at it (`evocompress.models.cpu_dtypes`).
        device: ``auto`` (a GPU where there is one), or a name such as ``cpu`` or ``cuda:1``.
        device_memory: Bytes of weights that may be on the device at a time; ``None`` puts the
            whole model there.
        trust_remote_code: Run code that comes with the checkpoint.

    Raises:
        ModelError: The model is missing, damaged, incomplete or of an unknown family, the
            device does not exist or has too little memory for a block, or a package that the
            format needs is not installed.
    """
    target = device_named(device)
    if source == DEMO_SOURCE:
        checkpoint = demo_checkpoint()
    else:
        checkpoint = locate(source, trust_remote_code=trust_remote_code)
    if checkpoint.packing:
        _family(checkpoint)
    if checkpoint.gguf or checkpoint.packing:
        checkpoint = converted(checkpoint)
    family = _family(checkpoint)
    task = family.task
    with quiet_transformers():
        tokenizer = read_tokenizer(checkpoint) if task.reads_text else None
        model = read_model(checkpoint, dtype, task.auto, family.unused)
    check_finite(checkpoint, model)
    if not task.reads_text:
        complete_image_size(model, checkpoint.folder)
    widened = _widened(model, target) if dtype == "auto" else None
    ready = loaded(model, tokenizer, source, task.pooling)
    found = replace(ready, widened=widened, folder=checkpoint.folder)
    if device_memory is None:
        torch.nn.Module.to(model, target)
        return found
    return replace(found, cache=stream_blocks(model, found.family, target, device_memory))


def require_next_token(loaded: LoadedModel, what: str) -> None:
    """Refuse what needs the loss of the next token, which only causal models have."""
    if not loaded.family.task.causal:
        raise ModelError(
            f"{what} needs a model that tells the next token, but {loaded.source} is one for "
            f"{loaded.family.task.name}: use another criterion or searcher"
        )


def _widened(model: PreTrainedModel, target: torch.device) -> torch.dtype | None:
    """The dtype that a model had, if a device is slow at it: then its weights become float32."""
    stored = model.dtype
    if target.type != "cpu" or not slow_on_cpu(stored):
        return None
    torch.nn.Module.float(model)
    model.config.dtype = torch.float32
    return stored


def load_as(config: ModelConfig) -> LoadedModel:
    """The model that a run names; see `load`."""
    return load(
        config.source,
        dtype=config.dtype,
        device=config.device,
        device_memory=config.device_memory,
        trust_remote_code=config.trust_remote_code,
    )


def loaded(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    source: str,
    pooling: Pooling | None = None,
) -> LoadedModel:
    """Make a model in memory ready to be compressed; it is frozen and put in evaluation mode.

    Its config says afterwards whether its head is its embedding, as its tensors do. Embeddings are
    pooled by default from the last token's state of a decoder, else from the mean.
    """
    settle_tying(model)
    family = family_of(model)
    if pooling is not None and family.task.compared == "embeddings":
        family = with_pooling(family, pooling)
    prepare(family, model)
    model.eval().requires_grad_(False)
    tokens = family.architecture(model).tokens
    return LoadedModel(model, tokenizer, family, source, _fingerprint(family, model), tokens=tokens)


def _fingerprint(family: Family, model: PreTrainedModel) -> str:
    """That of the model, and where it is the last token that is compared, of that as well."""
    own = fingerprint(model)
    if family.task.pooling == "mean":
        return own
    return hashlib.blake2b(f"{own} {family.task.pooling}".encode(), digest_size=8).hexdigest()


def fingerprint(model: PreTrainedModel) -> str:
    """Sixteen hex digits that hash a model's config and weights, wherever it came from.

    Covers the config without its volatile keys, and the name, shape, dtype and bytes of each
    parameter, tied ones once, and of each buffer that is stored with them.
    """
    digest = hashlib.blake2b(digest_size=8)
    config = lasting(model.config.to_dict())
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    stored = model.state_dict().keys()
    buffers = ((name, one) for name, one in model.named_buffers() if name in stored)
    for name, tensor in chain(model.named_parameters(), buffers):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(_raw_bytes(tensor))
    return digest.hexdigest()


def _raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor's values in row order."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def _family(checkpoint: Checkpoint) -> Family:
    """What serves a checkpoint, told before its weights are read or its code is run."""
    kind, classes = model_type(checkpoint)
    settings = read_checkpoint_json(checkpoint.folder / CONFIG)
    family = family_named(kind, classes, embeds=(checkpoint.folder / MODULES).is_file())
    know_compressed(kind)  # the tokenizer's reader reads the config as well
    if isinstance(family, ToBeDerived):
        family = derived_from(checkpoint.folder / CONFIG, settings, family.task)
    if family.task.causal and not classes and not _has_a_head(checkpoint, family):
        raise ModelError(
            f"{checkpoint.folder / CONFIG} names no class in architectures, and the weights have "
            "no head: add the class, so that it is known what the model is for"
        )
    of_texts = family.task.compared == "embeddings" and family.task.reads_text
    return _pooled(checkpoint, family) if of_texts else family


def _pooled(checkpoint: Checkpoint, family: Family) -> Family:
    """The family of an embedding model with the pooling of its checkpoint."""
    pooling = pooling_of(checkpoint.folder)
    if pooling is None and family.task.cached:
        raise ModelError(
            f"{checkpoint} is a decoder without a head, and no {POOLING} says how embeddings are "
            "made of its states: add the file of sentence-transformers (pooling_mode_lasttoken or "
            "pooling_mode_mean_tokens), or name the right class in config.json"
        )
    blind = "first" if family.task.cached else "last"
    if pooling == blind:
        name, other = ("cls", "last") if family.task.cached else ("lasttoken", "first")
        raise ModelError(
            f"{checkpoint.folder / POOLING} asks for embeddings by {name}, which is not supported "
            f"of {family.model_type} models: only the mean over the tokens, or the {other} one, is"
        )
    return with_pooling(family, pooling or "mean")


def _has_a_head(checkpoint: Checkpoint, family: Family) -> bool:
    """Whether the names of a decoder's weights are those of one with a head, perhaps a tied one."""
    body = f"{family.layers_path.partition('.')[0]}."
    names = stored_tensors(weight_files(checkpoint.folder))
    return any(name.startswith((body, "lm_head.")) for name in names)


def device_named(name: str) -> torch.device:
    """The device of a name; ``auto`` is a GPU where there is one.

    Raises:
        ModelError: There is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError):
        raise ModelError(f"there is no device {name!r} here; use auto, cpu or cuda") from None
