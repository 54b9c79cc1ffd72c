"""Which text should a winner be found on? SmolLM2-135M, winners and judges on three texts each.

Winners of `auto` are found on an encyclopedia, on text that the model wrote itself, and on books,
each on three draws: thirds of a text file, or other seeds of the model's writing. Every winner is
judged, before any healing, on all three texts, in parts that nothing was searched on. Printed are
KL to the dense model and, in brackets, the standard deviation over the draws: a row for each text
of the search, a column for each judge, and the mean of the columns after division by the best of
each, so that no text counts more because it is harder.

    python benchmarks/calibration.py --wikitext valid.txt test.txt
        --books books-train.txt books-heldout.txt --json calibration.json

Every winner is a cell that is kept in the results folder: an interrupted run goes on.
``--settings`` takes ``widths`` or ``zeros`` alone; ``--quick`` does all on a tiny random model.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import cell
from common import Figure, emit
from healing import Setup, Winner, quick_setup
from healing_choices import SETTINGS
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch import Tensor

from evocompress.core.config import CalibrationConfig
from evocompress.evaluation.calibration.calibration import load_calibration
from evocompress.evaluation.heldout import heldout_quality
from evocompress.export.reload import read_checkpoint

SELF = "self"
JUDGING_SEED = 1000
"""Of the text that the model writes to judge on."""


@dataclass(frozen=True)
class Texts:
    """Where the texts are.

    Attributes:
        files: Text to search on and text to judge on, by name.
        draws: How many parts the former has.
        scratch: Gets the parts.
    """

    files: Mapping[str, tuple[Path, Path]]
    draws: int
    scratch: Path

    @property
    def names(self) -> list[str]:
        """Of all texts."""
        return [*self.files, SELF]

    def part(self, name: str, draw: int) -> dict[str, Any]:
        """The settings of the calibration for a draw."""
        if name == SELF:
            return {"source": SELF, "seed": draw}
        lines = self.files[name][0].read_text().splitlines(keepends=True)
        own = np.array_split(np.arange(len(lines)), self.draws)[draw]
        path = self.scratch / f"{name}-{draw}.txt"
        path.write_text("".join(lines[own[0] : own[-1] + 1]))
        return {"source": str(path)}


def main() -> None:
    """Finds or reads every winner and prints the tables."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.quick:
            setup, texts = _quick(Path(scratch))
        else:
            files = {
                name: (Path(pair[0]), Path(pair[1]))
                for name, pair in (("wikitext", arguments.wikitext), ("books", arguments.books))
            }
            texts = Texts(files, arguments.draws, Path(scratch))
            setup = Setup.of_files(arguments.results, "", [], arguments.settings)
        figures: dict[str, Figure] = {}
        for setting in setup.spaces:
            rows = [
                _winner(setup, setting, texts, name, draw)
                for name in texts.names
                for draw in range(texts.draws)
            ]
            figures |= _figures(setting, rows, texts)
            _print(setting, figures, texts)
        emit("calibration", figures, arguments.json)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    pair = {"nargs": 2, "metavar": ("SEARCH", "JUDGE")}
    parser.add_argument("--wikitext", **pair, help="text files to search and to judge on")
    parser.add_argument("--books", **pair, help="the same of books")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--results", type=Path, default=Path("results/calibration"))
    parser.add_argument("--json")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if not (arguments.quick or (arguments.wikitext and arguments.books)):
        parser.error("give --wikitext and --books, two files each, or --quick")
    return arguments


def _quick(folder: Path) -> tuple[Setup, Texts]:
    """A tiny random model and texts of its own."""
    setup, texts = quick_setup(folder), {}
    for name in ("one", "two"):
        path = folder / f"{name}.txt"
        words = path.read_text().split()
        path.write_text("\n".join(" ".join(words[n : n + 9]) for n in range(0, len(words), 9)))
        texts[name] = (path, Path(setup.heldout[0]))
    search = {"name": "auto", "tokens": 1000}
    return replace(setup, search=search, sequences=2), Texts(texts, 2, folder)


def _winner(setup: Setup, setting: str, texts: Texts, name: str, draw: int) -> dict[str, Any]:
    """The divergence of a winner on every text."""
    calibration = {**setup.calibration, **texts.part(name, draw)}
    own = replace(setup, folder=setup.folder / f"{name}-{draw}", calibration=calibration)

    def compute() -> dict[str, Any]:
        winner = Winner(own, setting)
        dense = winner.context.loaded.model
        model = read_checkpoint(winner.run.checkpoint, dense)
        row: dict[str, Any] = {"searched": name, "draw": draw}
        for judge in texts.names:
            sequences = _judge(own, winner, texts, judge)
            found = heldout_quality(dense, {"winner": model}, sequences)["winner"]
            row |= {f"kl_{judge}": found.kl, f"ppl_{judge}": found.perplexity}
        return row

    return cell(setup.folder / "cells", f"{setting} {name} {draw}", compute)


def _judge(setup: Setup, winner: Winner, texts: Texts, name: str) -> Tensor:
    """Sequences that nothing is searched on."""
    if name != SELF:
        own = replace(setup, heldout=(str(texts.files[name][1]),))
        winner = Winner(own, winner.folder.name)
        return next(iter(winner.judges.values()))
    length = winner.context.config.calibration.length
    config = CalibrationConfig(
        seed=JUDGING_SEED,
        library_sequences=2,
        search_sequences=2,
        heldout_sequences=setup.sequences,
        length=length,
    )
    with torch.inference_mode():
        return load_calibration(config, winner.context.loaded).heldout


def _figures(setting: str, rows: list[dict[str, Any]], texts: Texts) -> dict[str, Figure]:
    """Mean and standard deviation over the draws."""
    found: dict[str, Figure] = {}
    for name in texts.names:
        mine = [row for row in rows if row["searched"] == name]
        for judge in texts.names:
            values = [row[f"kl_{judge}"] for row in mine]
            key = f"{setting}_{name}_on_{judge}_kl"
            found |= {key: statistics.fmean(values), f"{key}_sd": statistics.stdev(values)}
    best = partial(_best, found, setting, texts)
    for name in texts.names:
        shares = [float(found[f"{setting}_{name}_on_{j}_kl"] or 0) / best(j) for j in texts.names]
        found[f"{setting}_{name}_mean_share"] = statistics.fmean(shares)
    return found


def _best(found: Mapping[str, Figure], setting: str, texts: Texts, judge: str) -> float:
    return min(float(found[f"{setting}_{name}_on_{judge}_kl"] or 0) for name in texts.names)


def _print(setting: str, figures: Mapping[str, Figure], texts: Texts) -> None:
    table = Table("searched on", *texts.names, "mean of shares", title=setting, box=SIMPLE)
    for name in texts.names:
        keys = [f"{setting}_{name}_on_{judge}_kl" for judge in texts.names]
        cells = [f"{figures[key]:.4g} ({figures[key + '_sd']:.2g})" for key in keys]
        table.add_row(name, *cells, f"{figures[f'{setting}_{name}_mean_share']:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
