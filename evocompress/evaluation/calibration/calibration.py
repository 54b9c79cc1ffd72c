"""Calibration data: read from their source, cut into sequences, split into disjoint parts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from evocompress.core.config import CalibrationConfig
from evocompress.core.errors import DataError
from evocompress.core.requests import Pool
from evocompress.evaluation.calibration.images import image_bytes, read_images
from evocompress.evaluation.calibration.parts import text_parts
from evocompress.evaluation.calibration.sources import SELF
from evocompress.evaluation.calibration.special import surroundings
from evocompress.models.loading import LoadedModel

TOLD = 0.01
"""The share of held-out tokens in common runs that is worth a word; any text has some."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """Token ids on the CPU, int64, in three parts that share no sequence.

    For a model of images, pixel values (N, C, H, W) instead, float32.

    Attributes:
        library: For the statistics of the level library (N, S).
        search: Micro-batches (b, S) that the search draws from; the last may be smaller.
        heldout: For the final evaluation only (M, S).
        source: Where library and search part come from.
        heldout_source: Where the held-out part comes from.
        length: Tokens of each sequence, as the model's blocks see them.
        left_out: Tokens (or images) of the held-out source that were passed over, as library or
            search have them.
        repeated: Tokens of the held-out part that are all the same in runs of 16 that library or
            search see.
        opening: The tokens that begin every sequence of a causal model, as text; empty where
            there are none.
        labels: The true classes of the held-out part (M,), where all are known.
    """

    library: Tensor
    search: tuple[Tensor, ...]
    heldout: Tensor
    source: str
    heldout_source: str
    length: int
    left_out: int = 0
    repeated: int = 0
    opening: str = ""
    labels: Tensor | None = None

    @property
    def self_written(self) -> bool:
        """Whether the model wrote any of the text itself."""
        return SELF in (self.source, self.heldout_source)

    @property
    def pool(self) -> Pool:
        """The search part as a searcher sees it."""
        return Pool(tuple(len(ids) * self.length for ids in self.search))

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits that hash the tokens and how they are cut."""
        return _fingerprint(self.library, *self.search, self.heldout)

    @cached_property
    def library_fingerprint(self) -> str:
        """The same of the part that a level library is made from, which others may share."""
        return _fingerprint(self.library)

    @cached_property
    def heldout_fingerprint(self) -> str:
        """The same of the held-out part, for what is measured on that."""
        return _fingerprint(self.heldout)

    def notes(self, what: str) -> Iterator[str]:
        """What held-out part and the others have in common, where that is worth a word."""
        source, other = self.source, self.heldout_source
        if self.left_out and source != other:
            yield (
                f"{other} and {source} have something in common: the held-out part leaves out "
                f"{self.left_out:,} {what} that library or search see"
            )
        if self.repeated > TOLD * self.heldout.numel():
            yield (
                f"{other} repeats {source if source != other else 'itself'}: {self.repeated:,} of "
                f"the {self.heldout.numel():,} held-out tokens are in runs that library or search "
                "see as well, so the held-out values flatter"
            )


def _fingerprint(*parts: Tensor) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(str(tuple(part.shape)).encode())
        digest.update(part.contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_calibration(
    config: CalibrationConfig, loaded: LoadedModel, *, cache: Path | None = None
) -> Calibration:
    """Read the calibration tokens.

    The parts are taken from the source one after the other: library, search, held-out. What the
    first two have in common with the held-out source is passed over there, whatever the sources are
    called, so a `heldout_source` that is the same source is the same as none. Text that the model
    wrote is kept in `cache`, by default a folder in the user's cache.

    Raises:
        DataError: A source is missing, unreadable, too short, or not made for this model, or
            the sequences are longer than its context.
    """
    check_calibration(config, loaded)
    if not loaded.family.task.reads_text:
        return _images(config, loaded)
    counts = [config.library_sequences, config.search_sequences]
    parts = text_parts(config, loaded, cache)
    library, search = torch.split(parts.searched, counts)
    return Calibration(
        library=library,
        search=torch.split(search, config.micro_batch),
        heldout=parts.heldout,
        source=config.source,
        heldout_source=config.heldout_source or config.source,
        length=config.length,
        left_out=parts.left_out,
        repeated=parts.repeated,
        opening=_opening_text(config, loaded),
    )


def _opening_text(config: CalibrationConfig, loaded: LoadedModel) -> str:
    """What the sequences of a causal model begin with, for the reports."""
    if not loaded.family.task.causal or loaded.tokenizer is None:
        return ""
    before, _ = surroundings(loaded, config.bos)
    return " ".join(loaded.tokenizer.convert_ids_to_tokens(before.tolist()))


def _images(config: CalibrationConfig, loaded: LoadedModel) -> Calibration:
    """As `load_calibration`, for a model of images."""
    source, other = config.source, config.heldout_source or config.source
    counts = [config.library_sequences, config.search_sequences]
    searched = read_images(source, sum(counts), loaded)
    seen = frozenset(map(image_bytes, searched.pixels))
    heldout = read_images(other, config.heldout_sequences, loaded, seen=seen)
    library, search = torch.split(searched.pixels, counts)
    return Calibration(
        library=library,
        search=torch.split(search, config.micro_batch),
        heldout=heldout.pixels,
        source=source,
        heldout_source=other,
        length=loaded.length(heldout.pixels),
        left_out=heldout.left_out,
        labels=heldout.labels if int(heldout.labels.min()) >= 0 else None,
    )


def check_calibration(config: CalibrationConfig, loaded: LoadedModel) -> None:
    """Whether the model can be calibrated with sequences of the configured length and source.

    Raises:
        DataError: They are longer than its context or too short for its special tokens, or the
            model would have to write text and cannot.
    """
    if SELF in (config.source, config.heldout_source):
        check_writer(loaded, "calibration.source")
    if not loaded.family.task.reads_text:
        return
    context = loaded.family.architecture(loaded.model).context
    if config.length > context:
        raise DataError(
            f"calibration.length is {config.length}, but {loaded.source} takes at most "
            f"{context} tokens: lower calibration.length"
        )
    if loaded.tokenizer is None:
        return
    special = sum(map(len, surroundings(loaded, config.bos)))
    if config.length <= special:
        raise DataError(
            f"calibration.length is {config.length}, but the {special} special tokens of "
            f"{loaded.source} need room beside the text: raise calibration.length"
        )


def check_writer(loaded: LoadedModel, key: str) -> None:
    """Whether the model can write its text itself, as the setting `key` says.

    Raises:
        DataError: It cannot.
    """
    task = loaded.family.task
    if not task.causal:
        raise DataError(
            f"{key}=self: {loaded.source} is a model for {task.name}, which writes "
            f"no text: give {'a text file, or datasets:NAME' if task.reads_text else 'a folder'}"
        )
