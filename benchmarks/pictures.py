"""Pictures of benchmarks, as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray


def curves(
    path: Path,
    title: str,
    lines: Mapping[str, Sequence[Sequence[tuple[float, float]]]],
    labels: tuple[str, str],
) -> None:
    """Draws for each name the mean of its lines, and every line thinly.

    Args:
        path: The PNG file.
        title: Of the picture.
        lines: {name: lines, each of points (x, y)}; those of one name have the same length.
        labels: Of the axes.
    """
    figure, axes = _empty(title, labels)
    for name, found in lines.items():
        points = np.array(found, dtype=np.float64)
        mean = points.mean(axis=0)
        (drawn,) = axes.plot(mean[:, 0], mean[:, 1], marker="o", label=name)
        for line in points if len(points) > 1 else []:
            axes.plot(line[:, 0], line[:, 1], color=drawn.get_color(), linewidth=0.7, alpha=0.4)
    _save(figure, axes, path)


def fronts(
    path: Path,
    title: str,
    points: Mapping[str, NDArray[np.float64]],
    labels: tuple[str, str],
) -> None:
    """Draws points (N, 2) of several names, the second coordinate to the right."""
    figure, axes = _empty(title, labels)
    for (name, found), marker in zip(points.items(), "os^Dvx", strict=False):
        ordered = found[found[:, 1].argsort()]
        axes.plot(ordered[:, 1], ordered[:, 0], marker=marker, linewidth=0.8, label=name)
    _save(figure, axes, path)


def _empty(title: str, labels: tuple[str, str]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.5, 4.8), dpi=130, layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=labels[0], ylabel=labels[1])
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure: Figure, axes: Axes, path: Path) -> None:
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
