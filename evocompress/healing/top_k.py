"""A teacher's likeliest tokens on disk, so that it need not be in memory while a student learns."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor

from evocompress.core.circumstances import Facts, differences
from evocompress.core.config import HealConfig
from evocompress.core.environment import environment
from evocompress.core.errors import ConfigError, ModelError, RunError
from evocompress.core.files import (
    checksum_of,
    make_folder,
    naming_disk_errors,
    read_as,
    replacing,
    write_json,
)
from evocompress.core.progress import Told
from evocompress.export.folder import check_room
from evocompress.healing.loss import of_buckets, pack
from evocompress.healing.recipe import digest
from evocompress.healing.targets import Lessons, Targets, output_rows, remembered, states_of
from evocompress.models.head import bucket_log_probabilities
from evocompress.models.loading import LoadedModel

PART_BYTES = 64 * 2**20
"""Of a file: what an interrupted teacher says again is less."""

INDEX = "targets.json"

VALUE_BYTES = 4


class KeptParts(BaseModel):
    """The content of ``targets.json``.

    Attributes:
        made_of: Teacher, text and settings.
        circumstances: Under what it is made.
        parts: Checksums of the files that are whole.
    """

    made_of: dict[str, Any]
    circumstances: Facts
    parts: tuple[str, ...] = ()


def row_bytes(top_k: int, vocabulary: int) -> int:
    """Bytes of a position on disk."""
    return VALUE_BYTES * (2 * min(top_k, vocabulary) + 1)


def check_cacheable(loaded: LoadedModel, top_k: int | None) -> None:
    """Refuses to keep the likeliest outputs of a model whose outputs have no likelihood.

    Raises:
        ConfigError: Its outputs are embeddings or scores.
    """
    task = loaded.family.task
    if top_k is not None and task.compared != "logits":
        raise ConfigError(
            f"heal.top_k={top_k} keeps the likeliest tokens or classes, but {loaded.source} is a "
            f"model for {task.name}, whose outputs are {task.compared}: unset it"
        )


def keep_lessons(
    teacher: LoadedModel,
    train: Tensor | None,
    validation: Tensor,
    config: HealConfig,
    folder: Path,
    progress: Told,
) -> Lessons:
    """What a teacher says of both texts: its ``heal.top_k`` likeliest tokens, and all of it.

    Where there is nothing left to train on that is not made. Of the validation sequences the final
    states are kept in memory, from which the head makes all logits again.

    Raises:
        EvoCompressError: As `check_cacheable` and `TopK.targets`.
    """
    check_cacheable(teacher, config.top_k)
    assert config.top_k is not None
    targets = None
    if train is not None:
        batches = torch.split(train, config.micro_batch)
        targets = TopK(teacher, batches, config.top_k, folder).targets(progress)
    return Lessons(targets, remembered(teacher, torch.split(validation, config.micro_batch)))


class TopK:
    """The buckets of all outputs of micro-batches, in files of some micro-batches each."""

    def __init__(
        self, teacher: LoadedModel, micro_batches: Sequence[Tensor], top_k: int, folder: Path
    ) -> None:
        """Makes and reads nothing yet."""
        self._teacher = teacher
        self._batches = micro_batches
        self._top_k = top_k
        self._folder = folder
        length = teacher.length(micro_batches[0])
        self._counted = teacher.family.task.counted(length)
        self._rows = len(micro_batches[0]) * self._counted
        self._per_part = max(1, PART_BYTES // (self._rows * row_bytes(top_k, 2**31)))
        self._count = -(-len(micro_batches) // self._per_part)
        self._mapped: dict[int, Tensor] = {}

    def targets(self, progress: Told) -> Targets:
        """Makes what is not there yet; afterwards the teacher is not needed.

        What was made of something else, or under other circumstances, is made anew.

        Raises:
            RunError: A file is damaged.
            ModelError: The teacher's logits are not finite.
            ExportError: The disk is full.
        """
        index = self._known()
        for number in range(len(index.parts), self._count):
            path = self._path(number)
            part = self._part(number)
            with naming_disk_errors(path), replacing(path) as new, new.open("wb") as file:
                np.save(file, part)
            parts = (*index.parts, checksum_of(path))
            index = index.model_copy(update={"parts": parts})
            write_json(self._folder / INDEX, index.model_dump(mode="json"))
            progress(number + 1, self._count, "the teacher's likeliest tokens are kept")
        return Targets(self._of, of_buckets, f"KL in {self._top_k} buckets and the rest")

    def _known(self) -> KeptParts:
        """What is there of the same, verified."""
        model, path = self._teacher.model, self._folder / INDEX
        now = KeptParts(
            made_of={
                "teacher": self._teacher.fingerprint,
                "data": digest(torch.cat(list(self._batches))),
                "batch": len(self._batches[0]),
                "top_k": self._top_k,
            },
            circumstances=Facts.model_validate(environment(model.device, model.dtype, "local")),
        )
        remedy = f"remove {self._folder}, which is then made anew"
        if path.exists():
            known = read_as(path, KeptParts, remedy=remedy)
            same = known.made_of == now.made_of
            if same and not differences(known.circumstances, now.circumstances):
                for number, checksum in enumerate(known.parts):
                    if checksum_of(self._path(number)) != checksum:
                        raise RunError(f"{self._path(number)} is damaged: {remedy}")
                return known
        shutil.rmtree(self._folder, ignore_errors=True)
        outputs = sum(map(len, self._batches)) * self._counted
        check_room(self._folder, outputs * row_bytes(self._top_k, self._vocabulary()))
        make_folder(self._folder)
        return now

    def _vocabulary(self) -> int:
        """How many tokens or classes there are."""
        head = self._teacher.model.get_output_embeddings()
        return len(head.weight) if head is not None else 2**20

    @torch.no_grad()
    def _part(self, number: int) -> Any:
        first = number * self._per_part
        return torch.cat(
            [self._packed(batch) for batch in self._batches[first : first + self._per_part]]
        ).numpy()

    def _packed(self, batch: Tensor) -> Tensor:
        family, model = self._teacher.family, self._teacher.model
        found = []
        for rows in torch.split(states_of(family, model, batch), output_rows(self._teacher)):
            logits = family.outputs(model, rows)
            count = min(self._top_k, logits.shape[-1])
            tokens = logits.topk(count, sorted=False).indices
            top, rest = bucket_log_probabilities(logits, tokens)
            found.append(pack(tokens, top, rest).cpu())
            if not rest.isfinite().all():
                raise ModelError(
                    f"the logits of {self._teacher.source} are not finite in {model.dtype}: set "
                    "model.dtype to bfloat16 or float32"
                )
        return torch.cat(found)

    def _of(self, index: int) -> Tensor:
        """The packed buckets of a micro-batch."""
        number, place = divmod(index, self._per_part)
        if number not in self._mapped:
            part = np.lib.format.open_memmap(self._path(number), mode="c")
            self._mapped[number] = torch.from_numpy(part)
        first = place * self._rows
        return self._mapped[number][first : first + len(self._batches[index]) * self._counted]

    def _path(self, number: int) -> Path:
        return self._folder / f"part-{number:05d}.npy"
