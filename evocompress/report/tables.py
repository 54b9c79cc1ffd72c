"""The tables of an evaluation: the comparison, further texts, and the answers to questions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from evocompress.pipeline.winner import HealedCandidate, Winner, healed_order
from evocompress.report.columns import (
    UNTOLD,
    Cell,
    Column,
    columns,
    number,
    quality_columns,
    with_values,
)
from evocompress.report.data import Evaluation, QualityRecord, Row, TaskScore

BETWEEN = 1.96
"""Standard errors on each side of a difference that 95% of chance stays within."""

MEASURES = {"acc": "", "acc_norm": "by length"}
"""What the harness calls its measures of choices, in words."""


@dataclass(frozen=True)
class ResultTable:
    """A titled table with one line for each column's title and one cell for each row.

    `rows` are the names of models, or of `what` else the rows are.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[str, ...]
    what: str = "model"


def tables(evaluation: Evaluation) -> list[ResultTable]:
    """What was measured, one table after the other."""
    rows = evaluation.rows
    names = tuple(row.name for row in rows)
    found = [
        ResultTable("Comparison", tuple(columns(rows)), names),
        ResultTable("Further texts", tuple(_texts(rows)), names),
        ResultTable("Tasks", tuple(_tasks(rows)), names),
    ]
    return [table for table in found if table.columns]


def last_candidates(winner: Winner | None) -> list[ResultTable]:
    """The last candidates of a search before and after short healings, where there were any."""
    if winner is None or not winner.healed_last:
        return []
    last, places = winner.healed_last, healed_order(winner.healed_last)
    cells = {
        "By the proxy": [Cell(number(row.value, 4)) for row in last],
        "Validation, before healing": [_value(row.before) for row in last],
        "Validation, after healing": [
            Cell() if row.after is None else Cell(number(row.after, 4), (_place(places, row),))
            for row in last
        ],
    }
    titled = tuple(Column(title, "", tuple(found)) for title, found in cells.items())
    names = tuple(f"{row.id}, winner" if row.id == winner.id else row.id for row in last)
    return [ResultTable("Last candidates", titled, names, what="candidate")]


def _value(value: float | None) -> Cell:
    return Cell() if value is None else Cell(number(value, 4))


def _place(places: Sequence[HealedCandidate], row: HealedCandidate) -> str:
    return f"number {places.index(row) + 1}"


def table_notes(evaluation: Evaluation) -> Iterator[str]:
    """What a reader has to know of the tables beside the comparison."""
    if evaluation.texts:
        yield _texts_text(evaluation)
    if evaluation.tasks:
        yield _tasks_text(evaluation)


def _texts_text(evaluation: Evaluation) -> str:
    """How much of each further text was measured, and what is not new in them."""
    names = short_names([text.source for text in evaluation.texts])
    parts = [
        f"{names[text.source]}, {number(text.sequences, 0)} sequences of {text.length} tokens "
        f"(digest {text.digest}"
        + (f"; {number(text.repeated, 0)} tokens in runs that were seen)" if text.repeated else ")")
        for text in evaluation.texts
    ]
    return f"Further texts, without what library and search saw: {'; '.join(parts)}."


def _tasks_text(evaluation: Evaluation) -> str:
    """How many questions were asked, and what stands in the cells."""
    parts = [f"{task.name} {number(task.questions, 0)}" for task in evaluation.tasks]
    return (
        f"Tasks, asked through lm-evaluation-harness; questions: {', '.join(parts)}. ± is the "
        "standard error, Δ the difference to the dense model on the same questions, which has a "
        "standard error of its own; where Δ is less than 1.96 of these, the models "
        f"are {UNTOLD}. Lost are answers of the dense model that were right and are wrong now, won "
        "those that became right."
    )


def short_names(sources: Sequence[str]) -> dict[str, str]:
    """Sources by the names of their files, as far as these tell them apart."""
    names = [Path(source).name for source in sources]
    return {
        source: name if name and names.count(name) == 1 else source
        for source, name in zip(sources, names, strict=True)
    }


def _texts(rows: Sequence[Row]) -> list[Column]:
    sources = list(dict.fromkeys(text.source for row in rows for text in row.texts))
    names, found = short_names(sources), []
    for source in sources:
        of_rows = [
            next((text for text in row.texts if text.source == source), QualityRecord())
            for row in rows
        ]
        found += [
            Column(f"{names[source]}: {_small(column.title)}", column.unit, column.cells)
            for column in with_values(quality_columns(of_rows, "KL"))
        ]
    return found


def _small(title: str) -> str:
    """A title within a line; abbreviations stay as they are."""
    return title if title[:2].isupper() else title[0].lower() + title[1:]


def _tasks(rows: Sequence[Row]) -> list[Column]:
    asked = dict.fromkeys((score.task, score.measure) for row in rows for score in row.tasks)
    return [_task(rows, task, measure) for task, measure in asked]


def _task(rows: Sequence[Row], task: str, measure: str) -> Column:
    scores = [
        next((s for s in row.tasks if (s.task, s.measure) == (task, measure)), None) for row in rows
    ]
    shares = all(score is None or 0 <= score.value <= 1 for score in scores)
    said = MEASURES.get(measure, measure)
    return Column(
        f"{task}, {said}" if said else task,
        "%" if shares else "",
        tuple(_cell(score, 100 if shares else 1) for score in scores),
    )


def _cell(score: TaskScore | None, factor: float) -> Cell:
    """The score with its standard error; below, the difference to the dense model's."""
    if score is None:
        return Cell()
    notes = [] if score.error is None else [f"± {number(factor * score.error, 1)}"]
    if score.difference is not None:
        change = f"{factor * score.difference:+,.1f}"
        error = score.difference_error
        change += "" if error is None else f" ± {number(factor * error, 1)}"
        notes.append(f"Δ {change}")
        if error is not None and abs(score.difference) <= BETWEEN * error:
            notes.append(UNTOLD)
    if score.lost is not None and score.won is not None:
        notes.append(f"{score.lost:,} lost, {score.won:,} won")
    return Cell(number(factor * score.value, 1), tuple(notes))
