"""Goes from round to round, and compares what each yields with the model of the beginning."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evocompress.core.config import EvaluateConfig, RunConfig
from evocompress.core.files import read_json, write_json
from evocompress.core.progress import Reporter
from evocompress.export.healed import read_candidate_model
from evocompress.pipeline.compared_models import is_healed
from evocompress.pipeline.comparison import ComparedModel, compare
from evocompress.pipeline.context import RunContext
from evocompress.pipeline.early_checks import check_early
from evocompress.pipeline.evaluation_stage import record
from evocompress.pipeline.resolve import check_names
from evocompress.pipeline.rounds.folder import RoundsFolder, begin_rounds
from evocompress.pipeline.rounds.folder import check_rounds as check_folder
from evocompress.pipeline.rounds.schedule import check_schedule, round_folder, rounds_of
from evocompress.pipeline.run_folder import RunFolder, only_process


@dataclass(frozen=True)
class Stages:
    """What is done in a round, each from its beginning or from where it was interrupted.

    Attributes:
        search: Of a run; whether it goes on.
        materialize: The winner of the run in a folder.
        heal: The checkpoint of the run in a folder; whether it goes on.

    Examples:
        >>> stages = Stages(lambda run, goes_on: run.name, print, lambda path, goes_on: None)
        >>> stages.materialize(Path("runs/twice/round-1"))
        runs/twice/round-1
    """

    search: Callable[[RunConfig, bool], object]
    materialize: Callable[[Path], object]
    heal: Callable[[Path, bool], object]


def make_rounds(config: RunConfig, stages: Stages, *, resume: bool, reporter: Reporter) -> Path:
    """Makes all rounds, but for what is there already; see `evocompress.api.rounds`."""
    check_names(config)
    check_schedule(config)
    folder, runs = check_folder(config, resume), rounds_of(config)
    check_early(runs[0])
    begin_rounds(folder, config)
    first = RunContext(runs[0], round_folder(config, 1), reporter, finished=True)
    with only_process(folder.path):
        for number, one in enumerate(runs, start=1):
            reporter.say(f"round {number} of {config.rounds}")
            run = round_folder(config, number)
            _make(one, run, stages)
            _compare(first, number, run, folder)
    return folder.path


def _make(config: RunConfig, run: RunFolder, stages: Stages) -> None:
    """What is missing of a round."""
    if not run.winner.exists():
        stages.search(config, run.path.exists())
    if not run.checkpoint.exists():
        stages.materialize(run.path)
    if not is_healed(run):
        stages.heal(run.path, run.healing.exists())


def _compare(first: RunContext, number: int, run: RunFolder, folder: RoundsFolder) -> None:
    """Adds the models of a round to what is known of those before."""
    settings = first.config.evaluate.model_copy(update={"latency": False})
    known = read_json(folder.evaluation)["rows"] if folder.evaluation.exists() else []
    done = {row["name"] for row in known}
    rows = list(known)
    for name, path in _models(first, number, run):
        if name not in done:
            rows.append(_row(first, settings, name, path))
    write_json(folder.evaluation, record(first, settings, rows, run.checkpoint))


def _models(first: RunContext, number: int, run: RunFolder) -> Iterator[tuple[str, Path | None]]:
    """The models to compare after a round, by name; the dense one is the run's own."""
    if number == 1:
        yield "dense", None
    yield f"round {number}", run.checkpoint
    yield f"round {number}, healed", run.healed_checkpoint


def _row(
    first: RunContext, settings: EvaluateConfig, name: str, path: Path | None
) -> dict[str, Any]:
    """One model beside the dense one."""
    dense = first.loaded
    model = dense.model if path is None else read_candidate_model(path, dense)
    calibration, config = first.calibration, first.config
    rows = compare(
        dense,
        {name: ComparedModel(model, {})},
        calibration.heldout,
        settings,
        batch=config.calibration.micro_batch,
        length=first.space.cost_model.length,
        labels=calibration.labels,
    )
    return rows[0]
