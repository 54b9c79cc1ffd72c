"""The comparison of the models as text, once for the page, the summary and the terminal.

Numbers of one column share a unit and a number of decimals, so that they can be compared by eye.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from evocompress.report.data import QualityRecord, RatioRecord, Row, TimingRecord

R = TypeVar("R")

LATENCIES = {"latency": "prefill_ms", "decode_latency": "decode_ms_per_token"}
"""Where the latency that a cost predicts, in seconds, is found as measured, in milliseconds."""

RATIOS = {"latency": "prefill_ratio", "decode_latency": "decode_ratio"}
"""Where it is found as a share of the dense model's."""

UNTOLD = "not told apart"
"""Said of a latency whose share of the dense model's may well be 1."""

PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


@dataclass(frozen=True)
class Cell:
    """A value and what stands in small print below it; both may be empty."""

    text: str = "–"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Column:
    """A titled column with its unit (maybe empty) and one cell per row."""

    title: str
    unit: str
    cells: tuple[Cell, ...]


def columns(rows: Sequence[Row]) -> list[Column]:
    """The columns for which at least one row has a value.

    Args:
        rows: The models in the order shown; shares are of the row named ``dense``.
    """
    costs = [
        _cost("Parameters", "", "params", rows),
        _cost("Non-zeros", "", "nonzeros", rows),
        _cost("FLOPs", "", "flops", rows),
        _cost("Weights", "B", "weight_bytes", rows),
    ]
    speed = [
        _latency("Prefill", "ms", "latency", rows),
        _latency("Decode", "ms/token", "decode_latency", rows),
    ]
    return with_values([*costs, *quality_columns(rows), *speed])


def quality_columns(rows: Sequence[QualityRecord], name: str = "Held-out KL") -> list[Column]:
    """How good models are on a text, the divergence by another `name` or not."""
    of_tokens = any(row.perplexity is not None for row in rows)
    unit = "nats/token" if of_tokens else "nats"
    return [
        _share("Accuracy", rows, lambda row: row.accuracy),
        _share("Class of dense", rows, lambda row: row.agreement),
        Column(name, unit, tuple(_divergence(row) for row in rows)),
        _plain("KL, 99th percentile", "nats/token", rows, lambda row: row.kl_p99, 4),
        _plain("KL, top 256", "nats/token", rows, lambda row: row.kl_top256, 4),
        _plain("Perplexity", "", rows, lambda row: row.perplexity, 2),
        _plain("Embedding distance", "", rows, lambda row: row.distance, 5),
        _plain("Similarities, Spearman", "", rows, lambda row: row.spearman, 4),
        _plain("Score error", "", rows, lambda row: row.score_error, 5),
        _plain("Scores, Spearman", "", rows, lambda row: row.score_spearman, 4),
    ]


def with_values(columns: Sequence[Column]) -> list[Column]:
    """Those in which at least one cell has a value."""
    return [column for column in columns if set(column.cells) != {Cell()}]


def number(value: float | None, decimals: int) -> str:
    """A number with its thousands separated and some decimals; a dash where there is none.

    A number so small that fewer than two of its digits would be seen has two significant ones.
    """
    if value is None or math.isnan(value):
        return Cell.text
    if decimals and 0 < abs(value) < 10.0 ** (1 - decimals):
        return f"{value:#.2g}"
    return f"{value:,.{decimals}f}"


def percent(fraction: float) -> str:
    """A fraction as percent, with one decimal unless it is whole, or so small that it has two."""
    if 0 < abs(fraction) < 0.001:
        return f"{100 * fraction:.2g}%"
    return f"{100 * fraction:.1f}".removesuffix(".0") + "%"


def interval(ratio: RatioRecord) -> str:
    """Where the share of the dense model's time lies."""
    return f"{percent(ratio.low)} – {percent(ratio.high)}"


def scale(values: Sequence[float]) -> tuple[float, str]:
    """The divisor and SI prefix in which the largest of the values is at least 1."""
    largest = max(values, default=0.0)
    return next(((size, word) for size, word in PREFIXES if largest >= size), (1.0, ""))


def _cost(title: str, unit: str, name: str, rows: Sequence[Row]) -> Column:
    values: list[float | None] = [getattr(row, name) for row in rows]
    size, prefix = scale([value for value in values if value is not None])
    dense = next((value for row, value in zip(rows, values, strict=True) if row.name == "dense"), 0)
    cells = []
    for row, value in zip(rows, values, strict=True):
        notes = []
        if value is not None and dense and value != dense:
            notes.append(f"{percent(value / dense)} of dense")
        if value is not None and row.predicted and name in row.predicted:
            notes.append(_prediction(row.predicted[name], value, size))
        shown = Cell.text if value is None else number(value / size, 2)
        cells.append(Cell(shown, tuple(notes)))
    return Column(title, f"{prefix}{unit}", tuple(cells))


def _prediction(predicted: float, measured: float, size: float) -> str:
    """Says "as predicted" only for equality, however little the rounded numbers differ."""
    if predicted == measured:
        return "as predicted"
    shown = number(predicted / size, 2)
    if shown == number(measured / size, 2):
        return f"predicted {shown} ({100 * (predicted / measured - 1):+.2g}%)"
    return f"predicted {shown}"


def _plain(
    title: str, unit: str, rows: Sequence[R], value: Callable[[R], float | None], decimals: int
) -> Column:
    """A column of numbers with so many decimals."""
    return Column(title, unit, tuple(Cell(number(value(row), decimals)) for row in rows))


def _share(title: str, rows: Sequence[R], value: Callable[[R], float | None]) -> Column:
    """A share of the held-out data, in percent."""
    return _plain(title, "%", rows, lambda row: _times(value(row), 100), 1)


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else factor * value


def _divergence(row: QualityRecord) -> Cell:
    text = number(row.kl, 4)
    if row.kl is None or not row.kl_sd or math.isnan(row.kl_sd):
        return Cell(text)
    return Cell(text, (f"± {number(row.kl_sd, 4)} sd",))


def _latency(title: str, unit: str, name: str, rows: Sequence[Row]) -> Column:
    """Measured times with their spread, and their shares with intervals beside the predicted."""
    dense = next((row for row in rows if row.name == "dense"), None)
    return Column(title, unit, tuple(_timing(row, dense, name) for row in rows))


def _timing(row: Row, dense: Row | None, name: str) -> Cell:
    timing: TimingRecord | None = getattr(row, LATENCIES[name])
    if timing is None:
        return Cell()
    notes = [f"{number(timing.low, 1)} – {number(timing.high, 1)}"]
    ratio: RatioRecord | None = getattr(row, RATIOS[name])
    if ratio is not None:
        notes += [f"{percent(ratio.mean)} of dense", interval(ratio)]
        notes += [] if ratio.told_apart else [UNTOLD]
    predicted = (row.predicted or {}).get(name)
    full = (dense.predicted or {}).get(name) if dense else None
    if predicted and full and row is not dense:
        notes.append(f"predicted {percent(predicted / full)}")
    if predicted:
        notes.append(f"predicted {number(1000 * predicted, 1)}")
    return Cell(number(timing.median, 1), tuple(notes))
