"""From the times of whole models to those of their parts: least squares, numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from evocompress.core.arrays import Floats
from evocompress.evaluation.profile.layouts import Grid, ModelWidths
from evocompress.space.costs.latency import Phase


def fit_parts(
    widths: Grid, layouts: Sequence[ModelWidths], times: Sequence[float], lengths: tuple[int, int]
) -> Phase:
    """The parts whose sums come closest to measured times, relative to these times.

    Noise can make a wider part seem faster; parts are made monotone afterwards, and none is below
    zero. The layouts must tell all parts apart, and have no other widths than `widths`. Times are,
    in the phase too, fractions of the dense model's; `lengths` are (batch, tokens).
    """
    counts = np.array([count_parts(widths, layout) for layout in layouts], dtype=np.float64)
    weights = 1 / np.array(times)
    solution = np.linalg.lstsq(counts * weights[:, None], np.ones(len(times)), rcond=None)[0]
    base, attention, mlp = np.split(solution, np.cumsum([1, len(widths.attention)]))
    groups = len({groups for groups, _ in widths.attention})
    rising = monotone(attention.reshape(groups, -1)).flatten()
    return Phase(
        *lengths,
        dense=1.0,
        base=max(0.0, base.item()),
        attention=dict(zip(widths.attention, rising.clip(min=0).tolist(), strict=True)),
        mlp=dict(zip(widths.mlp, monotone(mlp).clip(min=0).tolist(), strict=True)),
    )


def seconds(phase: Phase, layout: ModelWidths) -> float:
    """The time of a layout by the sum of its parts."""
    return phase.seconds(layout.kept_attention, layout.kept_mlp)


def count_parts(widths: Grid, layout: ModelWidths) -> list[int]:
    """How often each part occurs in a layout: the base, attentions by width, MLPs by width."""
    attention = [layout.attention.count(width) for width in widths.attention]
    return [1, *attention, *(layout.mlp.count(width) for width in widths.mlp)]


def monotone(values: Floats) -> Floats:
    """Values that rise along each axis: halfway between the closest bounds that do.

    The bounds are the running maximum from below and the running minimum from above; values
    that rise already are left as they are.
    """
    below, above = values, values
    for axis in range(values.ndim):
        below = np.maximum.accumulate(below, axis)
        above = np.flip(np.minimum.accumulate(np.flip(above, axis), axis), axis)
    return (below + above) / 2


def corrected(
    draft: Phase,
    dense: ModelWidths,
    layouts: Sequence[ModelWidths],
    times: Sequence[float],
    unit: float,
) -> Phase:
    """A phase in seconds, with the scale and offset that whole models give to its sums.

    The draft of `fit_parts` was not fitted to these layouts, whose times are fractions of the dense
    model's `unit` seconds.
    """
    sums, measured = [seconds(draft, layout) for layout in layouts], np.array(times)
    scale, offset = line_through_dense(sums, times, seconds(draft, dense))
    errors = (offset + scale * np.array(sums)) / measured - 1
    return replace(
        draft,
        dense=unit,
        base=unit * (offset + scale * draft.base),
        attention={width: unit * scale * part for width, part in draft.attention.items()},
        mlp={width: unit * scale * part for width, part in draft.mlp.items()},
        scale=scale,
        offset=unit * offset,
        errors=tuple(errors.tolist()),
    )


def line_through_dense(
    sums: Sequence[float], times: Sequence[float], dense: float
) -> tuple[float, float]:
    """The (scale, offset) from sums of parts to times that are right for the dense model.

    A time is ``offset + scale * sum``. Budgets are fractions of the dense model's time, so an error
    there would be in all of them. Among these lines it is the one with the smallest sum of squared
    relative errors.
    """
    weights = 1 / np.array(times)
    steps = (np.array(sums) - dense) * weights
    scale = float(steps @ ((np.array(times) - 1) * weights) / (steps @ steps))
    return scale, 1 - scale * dense
