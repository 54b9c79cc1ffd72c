"""A run's journal as a study of Optuna, for people to look at with optuna-dashboard.

A mirror is only ever written: no search reads it, and it is made anew from the journal, at any
time, also while the run is still going on:

    python examples/optuna_mirror.py runs/demo demo.log && optuna-dashboard demo.log
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from evocompress.core.checked_lines import JournalRecord, Line, lines
from evocompress.core.errors import EvoCompressError, RunError
from evocompress.core.files import naming_disk_errors, replacing
from evocompress.core.types import DENSE, Level
from evocompress.pipeline.journal_memory import candidate_of


def mirror(folder: Path, target: Path) -> int:
    """Writes the journal of a run as the file of an Optuna study, in place of an older mirror.

    Each candidate is a trial: its parameters are the levels' names by unit, its value the mean
    over all that it was measured on. Probes are among them, as a journal does not tell them
    apart. What could not be measured is a failed trial, what was stopped early a pruned one.

    Args:
        folder: The run's folder.
        target: A file that Optuna's `JournalFileBackend` and optuna-dashboard read.

    Returns:
        How many trials there are.

    Raises:
        RunError: The folder has no journal, a line of it is damaged, or the target is the
            journal itself.
    """
    journal = folder / "journal.jsonl"
    if not journal.is_file():
        raise RunError(f"{folder} is not a run folder: it has no journal.jsonl")
    if target.resolve() == journal.resolve():
        raise RunError(f"{target} is the journal itself: give the mirror another name")
    found = trials(lines(journal))
    with naming_disk_errors(target), replacing(target) as temporary:
        storage = JournalStorage(JournalFileBackend(str(temporary)))
        study = optuna.create_study(
            storage=storage, study_name=folder.resolve().name, direction="minimize"
        )
        study.add_trials(found)
    return len(found)


def trials(journal: Iterable[Line]) -> list[FrozenTrial]:
    """One trial per candidate and treatment, in the order in which they were first answered.

    Raises:
        RunError: A line is damaged.
    """
    levels: dict[str, Mapping[str, Level]] = {}
    answers: dict[tuple[str, str], list[JournalRecord]] = {}
    for line in journal:
        record = line.record()
        if record["type"] == "candidate":
            levels[record["id"]] = candidate_of(line).by_name
        elif record["type"] in ("value", "failure", "censored"):
            if record["candidate"] not in levels:
                raise line.damaged("no line before it is that of its candidate")
            answers.setdefault((record["candidate"], record["treatment"]), []).append(record)
    choices = _choices(levels.values())
    return [
        _trial(candidate, treatment, levels[candidate], own, choices)
        for (candidate, treatment), own in answers.items()
    ]


def _trial(
    candidate: str,
    treatment: str,
    levels: Mapping[str, Level],
    answers: Iterable[JournalRecord],
    choices: Mapping[str, BaseDistribution],
) -> FrozenTrial:
    by_type: dict[str, list[JournalRecord]] = {}
    for answer in answers:
        by_type.setdefault(answer["type"], []).append(answer)
    values = by_type.get("value", [])
    positions = sum(sum(value["counts"]) for value in values)
    notes = {
        "candidate": candidate,
        "treatment": treatment,
        "micro_batches": len(values),
        "positions": positions,
    }
    state = TrialState.COMPLETE
    if "failure" in by_type:
        state = TrialState.FAIL
        notes["failure"] = by_type["failure"][0]["reason"]
    elif "censored" in by_type:
        state = TrialState.PRUNED
    total = sum(sum(value["sums"]) for value in values)
    return create_trial(
        state=state,
        value=total / positions if state == TrialState.COMPLETE else None,
        params={name: levels.get(name, DENSE).key for name in choices},
        distributions=dict(choices),
        user_attrs=notes,
    )


def _choices(candidates: Iterable[Mapping[str, Level]]) -> dict[str, BaseDistribution]:
    """For each unit that any candidate names, the names of its levels, from dense to dropped."""
    seen: dict[str, set[Level]] = {}
    for levels in candidates:
        for name, level in levels.items():
            seen.setdefault(name, {DENSE}).add(level)
    return {
        name: CategoricalDistribution([level.key for level in sorted(seen[name], key=_compression)])
        for name in sorted(seen)
    }


def _compression(level: Level) -> tuple[float, ...]:
    """Sorts the levels of a unit from the least compressed to the most."""
    widths = (level.kv_groups, level.group_heads, level.channels)
    kept = [float("inf") if width is None else width for width in widths]
    return (level.drop, level.zeros, level.merge, *(-width for width in kept))


def main() -> None:
    """Mirrors the run whose folder the command names."""
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/optuna_mirror.py RUN_FOLDER TARGET")
    try:
        print(f"{mirror(Path(sys.argv[1]), Path(sys.argv[2]))} trials in {sys.argv[2]}")
    except EvoCompressError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
