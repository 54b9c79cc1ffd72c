"""The healing's folder: training state to resume from, the history, and the best checkpoint."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import MinLen
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from evocompress.core.checked_lines import sealed
from evocompress.core.circumstances import Change, Circumstances, Facts, differences
from evocompress.core.errors import RunError, one_line
from evocompress.core.files import FolderFile, checksum_of, json_text, read_as, write_text
from evocompress.core.regular import check_regular
from evocompress.export.folder import whole_folder

LOG = logging.getLogger("evocompress")


@dataclass(frozen=True)
class StepRecord:
    """One line of ``heal.jsonl``.

    Attributes:
        step: Optimizer steps done; 0 is the student as it came.
        train_loss: Mean KL in nats per position over the step's sequences; ``None`` at step 0.
        validation_kl: Mean KL on the validation sequences after the step; ``None`` where it was
            not measured or not finite.
        learning_rate: Of the step.
    """

    step: int
    train_loss: float | None
    validation_kl: float | None
    learning_rate: float | None


@dataclass(frozen=True)
class Best:
    """The step after which the best checkpoint so far was made, and its validation KL."""

    step: int
    kl: float


@dataclass(frozen=True)
class HealFolder:
    """Paths and files below the folder of one healing.

    Attributes:
        path: The folder.
        checkpoint: The best model so far.
        history: One JSON line per step.
        report: The `HealReport` of a finished healing.
        states: Training states, one folder per step.
    """

    path: Path

    checkpoint = FolderFile("checkpoint")
    history = FolderFile("heal.jsonl")
    report = FolderFile("heal.json")
    states = FolderFile("state")

    def latest(self) -> Path | None:
        """The newest training state."""
        return max(self.states.glob("step-*"), default=None)

    def check_new(self) -> None:
        """Refuses to begin anew what was begun.

        Raises:
            RunError: There is a training state or a report.
        """
        if self.report.exists() or self.latest() is not None:
            raise RunError(f"{self.path} exists: resume it, or remove it to heal anew")

    def save(
        self,
        tensors: Mapping[str, Tensor],
        history: list[StepRecord],
        best: Best,
        recipe: Mapping[str, Any],
        circumstances: Circumstances,
    ) -> None:
        """Writes history and training state; the state appears whole, then older ones go.

        A finished healing has no tensors to continue from.

        Raises:
            ExportError: The disk is full.
            RunError: The disk is full.
        """
        lines = b"".join(sealed(asdict(record)) for record in history)
        write_text(self.history, lines.decode())
        new = self.states / f"step-{history[-1].step:08d}"
        with whole_folder(new) as folder:
            save_file(dict(tensors), folder / "state.safetensors")
            meta = {
                "recipe": recipe,
                "best": asdict(best),
                "history": [asdict(record) for record in history],
                "tensors": checksum_of(folder / "state.safetensors"),
                "circumstances": circumstances.model_dump(mode="json"),
            }
            (folder / "state.json").write_text(json_text(meta), encoding="utf-8")
        for old in self.states.iterdir():
            if old != new:
                shutil.rmtree(old)

    def load(self, state: Path, recipe: Mapping[str, Any]) -> tuple[dict[str, Tensor], State]:
        """What `save` wrote: the tensors, and what stands beside them.

        Raises:
            RunError: It was written for another recipe, or is damaged.
        """
        remedy = f"remove {self.path} to heal anew"
        meta = read_as(state / "state.json", State, remedy=remedy)
        differing = [key for key in recipe if meta.recipe.get(key) != recipe[key]]
        if differing:
            raise RunError(f"{self.path} was begun with another {', '.join(differing)}: {remedy}")
        tensors = _read_tensors(state / "state.safetensors", meta.tensors, remedy)
        return tensors, meta

    def going_on(self, state: State, now: Facts, force: bool) -> Circumstances:
        """Under what a healing was begun and goes on from a state of `load`.

        Older versions did not write down under what it was made.

        Raises:
            RunError: The present circumstances are others, and it is not forced.
        """
        known = state.circumstances
        if known is None:
            LOG.warning("%s says not under what it was begun: nothing is compared", self.path)
            return Circumstances.model_validate(now.model_dump())
        found = differences(known.last, now)
        if not found:
            return known
        if not force:
            raise RunError(
                f"{self.path} was begun under other circumstances: {'; '.join(found)}; other "
                "kernels round otherwise: go on where it was begun, remove the folder to heal "
                f"anew, or go on all the same with --force, which {self.report.name} and the "
                "report then say"
            )
        change = Change(**now.model_dump(), step=state.history[-1].step)
        return known.model_copy(update={"changes": (*known.changes, change)})


class State(BaseModel):
    """The content of ``state.json``.

    Attributes:
        recipe: What the healing was begun with.
        best: The best checkpoint so far.
        history: All steps so far.
        tensors: Checksum of ``state.safetensors``; ``None`` in states of older versions.
        circumstances: Under what it was begun and went on; ``None`` in states of older versions.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    recipe: dict[str, Any]
    best: Best
    history: Annotated[tuple[StepRecord, ...], MinLen(1)]
    tensors: str | None = None
    circumstances: Circumstances | None = None


def _read_tensors(path: Path, checksum: str | None, remedy: str) -> dict[str, Tensor]:
    try:
        if checksum is None:
            check_regular(path)
            LOG.warning("%s was written without a checksum: it is used as it is", path)
        elif checksum_of(path) != checksum:
            raise RunError(
                f"{path} is damaged, so healing cannot be resumed (its checksum differs): {remedy}"
            )
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"{path} is damaged, so healing cannot be resumed ({one_line(error)}): {remedy}"
        ) from error
