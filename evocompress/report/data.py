"""Reading a run folder into frozen data; a file that a run does not write yet is ``None``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict

from evocompress.core.architecture import Architecture
from evocompress.core.checked_lines import lines
from evocompress.core.circumstances import Circumstances, Environment, Facts, read_environment
from evocompress.core.config import EvaluateConfig, RunConfig
from evocompress.core.errors import RunError
from evocompress.core.files import read_as, read_json, validated
from evocompress.core.requests import UNTREATED
from evocompress.core.types import Candidate, Unit
from evocompress.pipeline.journal_memory import Memory
from evocompress.pipeline.run_folder import RunFolder
from evocompress.pipeline.winner import Winner, read_winner, row_names
from evocompress.report.history import History, read_history

T = TypeVar("T")

EVALUATE = "have it written anew by 'evocompress evaluate'"
SEARCH = "delete it and have it written anew by 'evocompress search --resume'"


class FileModel(BaseModel):
    """Base of what is read: immutable; keys that the report does not use are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class FrontPoint(FileModel):
    """A candidate that was evaluated at the last fidelity (``front.json``).

    `label` says what a reference stands for, such as "uniform width".
    """

    id: str
    value: float
    costs: dict[str, float]
    tokens: int
    non_dominated: bool
    label: str | None = None


class FurtherText(FileModel):
    """A text that an evaluation measured on; `length` in tokens.

    `repeated` tokens are in runs that library or search see as well; `digest` is of the tokens.
    """

    source: str
    sequences: int
    length: int
    repeated: int = 0
    digest: str = ""


class Heldout(FurtherText):
    """The text of the final evaluation; `opening` is what begins each sequence."""

    self_written: bool
    opening: str = ""


class AskedTask(FileModel):
    """A task of an evaluation: a file of questions with its checksum, or one of the harness's."""

    name: str
    questions: int
    file: str = ""
    digest: str = ""
    version: str = ""


class TaskScore(FileModel):
    """How one model did in a task, by one measure; see `evocompress.evaluation.tasks.Score`."""

    task: str
    measure: str
    value: float
    error: float | None = None
    difference: float | None = None
    difference_error: float | None = None
    lost: int | None = None
    won: int | None = None


class TimingRecord(FileModel):
    """Median, lowest and highest of repeated timings, in milliseconds."""

    median: float
    low: float
    high: float


class RatioRecord(FileModel):
    """A time as a share of the dense model's, with the ends of its 95% interval."""

    mean: float
    low: float
    high: float
    turns: int

    @property
    def told_apart(self) -> bool:
        """Whether the two times certainly differ."""
        return not self.low <= 1 <= self.high


class QualityRecord(FileModel):
    """How good a model is on a text, or on what else it reads."""

    kl: float | None = None
    kl_sd: float | None = None
    kl_p99: float | None = None
    kl_top256: float | None = None
    perplexity: float | None = None
    accuracy: float | None = None
    agreement: float | None = None
    distance: float | None = None
    spearman: float | None = None
    score_error: float | None = None
    score_spearman: float | None = None


class TextRecord(QualityRecord):
    """The same on a further text."""

    source: str


class Row(QualityRecord):
    """One model of the comparison; `predicted` holds costs by name.

    Evaluations of older versions have no ratios of latencies, texts or tasks.
    """

    name: str
    params: float | None = None
    nonzeros: float | None = None
    flops: float | None = None
    weight_bytes: float | None = None
    prefill_ms: TimingRecord | None = None
    prefill_ratio: RatioRecord | None = None
    decode_ms_per_token: TimingRecord | None = None
    decode_ratio: RatioRecord | None = None
    predicted: dict[str, float] | None = None
    texts: tuple[TextRecord, ...] = ()
    tasks: tuple[TaskScore, ...] = ()


class Evaluation(FileModel):
    """The comparison of the models on held-out text (``evaluation.json``).

    `settings`, `device` and `environment` may differ from the run's: an evaluation can be repeated
    elsewhere. `candidate` is the id of the run's checkpoint, which older versions did not write.
    """

    candidate: str | None = None
    heldout: Heldout
    settings: EvaluateConfig | None = None
    device: str = ""
    environment: Facts | None = None
    rows: tuple[Row, ...]
    texts: tuple[FurtherText, ...] = ()
    tasks: tuple[AskedTask, ...] = ()

    def row(self, name: str) -> Row | None:
        """The row of that name, if the run has it."""
        return next((row for row in self.rows if row.name == name), None)

    def named(self, winner: str) -> Evaluation:
        """The same, its rows named after what they are beside the present winner."""
        names = row_names(self.candidate, winner)
        rows = [row.model_copy(update={"name": names.get(row.name, row.name)}) for row in self.rows]
        return self.model_copy(update={"rows": tuple(rows)})


class HealStep(FileModel):
    """One optimizer step of the healing (``heal/heal.jsonl``); step 0 is the model as it came."""

    step: int
    train_loss: float | None = None
    validation_kl: float | None = None
    learning_rate: float | None = None


class Healing(FileModel):
    """What the healing's summary (``heal/heal.json``) or its newest state says beside the steps."""

    circumstances: Circumstances | None = None
    tokens: int | None = None
    best_kl: float | None = None
    next_kl: float | None = None
    measure: str = ""
    members: tuple[float, ...] = ()
    averaged: tuple[int, ...] = ()


class Made(FileModel):
    """Which candidate a checkpoint is of (``candidate.json``)."""

    id: str


class Outline(FileModel):
    """The units with the model's dimensions beside them (``units.json``).

    `opening` is the beginning-of-text token that begins every sequence, where one does.
    """

    units: tuple[Unit, ...]
    architecture: Architecture
    opening: str = ""


@dataclass(frozen=True)
class RunData:
    """All that a report is made of.

    `candidates` is every one of the journal, by id; `healed` is the id of that which was healed.
    """

    config: RunConfig
    history: History
    candidates: Mapping[str, Candidate]
    environment: Environment | None = None
    units: tuple[Unit, ...] = ()
    architecture: Architecture | None = None
    opening: str = ""
    winner: Winner | None = None
    front: tuple[FrontPoint, ...] = ()
    evaluation: Evaluation | None = None
    healing: tuple[HealStep, ...] = ()
    healing_summary: Healing | None = None
    healed: str | None = None


def budget_of(run: RunData) -> dict[str, float]:
    """The budget as it was written, or the one that the search space implied, as shares."""
    if run.config.space.budget or run.winner is None:
        return dict(run.config.space.budget)
    dense = run.winner.dense_costs
    return {name: bound / dense[name] for name, bound in run.winner.budget.items()}


def spanning_costs(run: RunData) -> tuple[str, ...]:
    """The costs that were weighed against the value: those of the front, or of the budget."""
    front = run.winner.front if run.winner else None
    return front.axes if front else tuple(run.config.space.budget)


def read_run(folder: Path) -> RunData:
    """Reads what there is in a run folder.

    Raises:
        RunError: The configuration or the journal is missing, or a file is damaged.
    """
    for name in ("config.yaml", "journal.jsonl"):
        if not (folder / name).is_file():
            raise RunError(
                f"{folder} is no run folder: it has no {name}; name one that a run wrote"
            )
    config = RunFolder(folder).config()
    units, architecture, opening = _read_units(folder / "units.json")
    memory, made = Memory(folder / "journal.jsonl"), folder / "environment.json"
    winner = _winner(folder)
    return RunData(
        config=config,
        history=read_history(
            memory, units, config.space.sparsity, winner.treatment if winner else UNTREATED
        ),
        candidates=memory.candidates,
        environment=read_environment(made) if made.is_file() else None,
        units=units,
        architecture=architecture,
        opening=opening,
        winner=winner,
        front=read_front(folder),
        evaluation=_evaluation(folder, winner),
        healing=_read_healing(folder / "heal" / "heal.jsonl"),
        healing_summary=_healing_summary(folder / "heal"),
        healed=_healed(folder),
    )


def read_front(folder: Path) -> tuple[FrontPoint, ...]:
    """Reads the front alone; empty where there is none yet.

    Raises:
        RunError: The file is damaged.
    """
    return _optional(folder / "front.json", tuple[FrontPoint, ...], SEARCH) or ()


def read_evaluation(folder: Path) -> Evaluation:
    """Reads the comparison alone.

    Raises:
        RunError: The run has no evaluation yet, or the file is damaged.
    """
    evaluation = _evaluation(folder, _winner(folder))
    if evaluation is None:
        raise RunError(f"{folder} has no evaluation.json: evaluate the run's winner first")
    return evaluation


def _winner(folder: Path) -> Winner | None:
    place = folder / "winner.json"
    return read_winner(place) if place.is_file() else None


def _optional(path: Path, kind: type[T], remedy: str) -> T | None:
    return read_as(path, kind, remedy=remedy) if path.is_file() else None


def _evaluation(folder: Path, winner: Winner | None) -> Evaluation | None:
    found = _optional(folder / "evaluation.json", Evaluation, EVALUATE)
    return found.named(winner.id) if found and winner else found


def _read_units(path: Path) -> tuple[tuple[Unit, ...], Architecture | None, str]:
    """The units, as a bare list or with the model's dimensions and the opening beside them."""
    if not path.is_file():
        return (), None, ""
    data = read_json(path, remedy=SEARCH)
    if not isinstance(data, Mapping):
        return validated(data, tuple[Unit, ...], path, remedy=SEARCH), None, ""
    outline = validated(data, Outline, path, remedy=SEARCH)
    return outline.units, outline.architecture, outline.opening


def _read_healing(path: Path) -> tuple[HealStep, ...]:
    if not path.is_file():
        return ()
    remedy = "remove the file to have a report without it"
    try:
        records = [json.loads(line.content) for line in lines(path)]
    except (RunError, ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged (a line is not what was written): {remedy}") from error
    return validated(records, tuple[HealStep, ...], path, remedy=remedy)


def _healed(folder: Path) -> str | None:
    """The candidate that a healing is of; that of the checkpoint while it is not finished."""
    places = [folder / "heal" / "checkpoint", folder / "checkpoint"]
    there = [place for each in places if (place := each / "candidate.json").is_file()]
    known = _optional(there[0], Made, "write the checkpoint again") if there else None
    return known.id if known else None


def _healing_summary(folder: Path) -> Healing | None:
    """What is known of a healing as a whole, from its summary or else its newest state."""
    newest = max((folder / "state").glob("step-*/state.json"), default=None)
    path = newest if newest and not (folder / "heal.json").is_file() else folder / "heal.json"
    return _optional(path, Healing, f"remove {folder} and heal anew")
