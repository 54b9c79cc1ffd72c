"""The trials of a sweep as a table, the same for the page and the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path
from typing import Any

from rich import box
from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

from evocompress.core.terminal import shown
from evocompress.pipeline.sweep.folder import SweepFolder
from evocompress.pipeline.sweep.outcome import TrialOutcome, read_outcomes
from evocompress.pipeline.sweep.trials import group_of, value_text
from evocompress.report.columns import Cell, number, percent
from evocompress.report.notes import cost_title
from evocompress.report.terminal import titled

VALUE, ENDED = "Value", "Ended"
MOST_COSTS = 3
LONGEST_REASON = 60


@dataclass(frozen=True)
class Heading:
    """A column's title and, maybe empty, its unit."""

    title: str
    unit: str = ""


@dataclass(frozen=True)
class TrialRow:
    """A trial: its folder, one text per column, and whether it is the best of its group."""

    folder: str
    cells: tuple[str, ...]
    best: bool


@dataclass(frozen=True)
class TrialTable:
    """All trials, settings first."""

    headings: tuple[Heading, ...]
    rows: tuple[TrialRow, ...]

    @property
    def value_column(self) -> int:
        """Where the values are."""
        return [heading.title for heading in self.headings].index(VALUE)


def trial_table(outcomes: Sequence[TrialOutcome]) -> TrialTable:
    """The columns: varied settings, value, costs that were weighed, tokens, time, how it ended."""
    settings = short_settings(outcomes)
    keys = list(dict.fromkeys(key for outcome in outcomes for key in outcome.settings))
    costs = list(dict.fromkeys(cost for outcome in outcomes for cost in outcome.axes))[:MOST_COSTS]
    headings = [
        *(Heading(title) for title in short_keys(keys)),
        Heading(VALUE),
        *(Heading(cost_title(cost), "of dense") for cost in costs),
        Heading("Tokens", "requested"),
        Heading("Time", "s"),
        Heading(ENDED),
    ]
    best = best_of_groups(outcomes)
    rows = []
    for outcome in outcomes:
        cells = (
            *settings[outcome.name].values(),
            number(shown_value(outcome), 4),
            *(_share(outcome, cost) for cost in costs),
            number(outcome.requested, 0),
            number(outcome.seconds, 1),
            _ended(outcome),
        )
        rows.append(TrialRow(outcome.name, cells, outcome.name in best))
    return TrialTable(tuple(headings), tuple(rows))


def best_of_groups(outcomes: Sequence[TrialOutcome]) -> set[str]:
    """Names of the finished trials with the least value among those that they compare with.

    On the tokens that their winners have in common; where there are none, no trial is the best.
    """
    groups: dict[str, list[TrialOutcome]] = {}
    for outcome in outcomes:
        if outcome.status == "finished":
            groups.setdefault(group_of(outcome.settings), []).append(outcome)
    best = (
        min(group, key=_comparable)
        for group in groups.values()
        if len(group) == 1 or isfinite(max(map(_comparable, group)))
    )
    return {outcome.name for outcome in best}


def _comparable(outcome: TrialOutcome) -> float:
    return inf if outcome.compared is None else outcome.compared


def shown_value(outcome: TrialOutcome) -> float | None:
    """The value that compares with those of other trials, else the trial's own."""
    return outcome.value if outcome.compared is None else outcome.compared


def sweep_table(path: Path) -> Table:
    """The trials of a sweep for the terminal; the best of each group is marked.

    Raises:
        RunError: It has no sweep.json.
    """
    table = trial_table(read_outcomes(SweepFolder(path)))
    caption = "* best of the trials that differ in seed, search or library only"
    result = Table(box=box.SIMPLE_HEAD, caption=Text(caption), caption_justify="left")
    for heading in table.headings:
        title = titled(heading.title, heading.unit)
        justify: JustifyMethod = "left" if heading.title == ENDED else "right"
        result.add_column(title, justify=justify, overflow="fold")
    for row in table.rows:
        cells = list(map(shown, row.cells))
        if row.best:
            cells[table.value_column] = shown(f"* {row.cells[table.value_column]}", "bold")
        result.add_row(*cells)
    return result


def short_settings(outcomes: Sequence[TrialOutcome]) -> dict[str, dict[str, str]]:
    """{trial: {varied key: what the table shows for it}}."""
    keys = list(dict.fromkeys(key for outcome in outcomes for key in outcome.settings))
    columns = {key: _settings(key, outcomes) for key in keys}
    return {
        outcome.name: {key: column[place] for key, column in columns.items()}
        for place, outcome in enumerate(outcomes)
    }


def short_keys(keys: Sequence[str]) -> list[str]:
    """The last word of each dotted key, or all of it where that is the last of another, too."""
    last = [key.rsplit(".", 1)[-1] for key in keys]
    return [word if last.count(word) == 1 else key for key, word in zip(keys, last, strict=True)]


def _settings(key: str, outcomes: Sequence[TrialOutcome]) -> list[str]:
    """What each trial has for a key; of paths only the end, where that tells them apart."""
    texts = [value_text(outcome.settings.get(key)) for outcome in outcomes]
    ends = [_end(outcome.settings.get(key)) for outcome in outcomes]
    return ends if len(set(ends)) == len(set(texts)) else texts


def _end(value: Any) -> str:
    return value.rstrip("/").rsplit("/", 1)[-1] if isinstance(value, str) else value_text(value)


def _share(outcome: TrialOutcome, cost: str) -> str:
    if outcome.costs is None or outcome.dense_costs is None or not outcome.dense_costs.get(cost):
        return Cell.text
    return percent(outcome.costs[cost] / outcome.dense_costs[cost])


def _ended(outcome: TrialOutcome) -> str:
    if outcome.status != "failed":
        return {"stopped": "stopped early"}.get(outcome.status, outcome.status)
    reason = outcome.reason or ""
    cut = f"{reason[:LONGEST_REASON]}..." if len(reason) > LONGEST_REASON else reason
    return f"failed: {cut}"
