"""Does the proxy before healing tell which candidate is better after it? On SmolLM2-135M.

24 candidates of one budget over the range of quality: the winner of `auto`, ever more changed
copies of it, the even one and random ones. Each is healed with the same fresh text and judged on
held-out texts. Rank correlations with the KL after the long healing, with bootstrap intervals, of
the proxy before healing (``plain``), of the KL on the search part after short healings (``aware``)
and of that on their validation sequences, which ``search.heal_last`` chooses by (``validated``),
and the regret of picking by each: how much worse the pick is than the best. With a folder of tasks
the same for their wrong answers, the mean over tasks.

    python benchmarks/proxy_validity.py --calibration wikitext2-valid.txt --text books-train.txt
        --heldout wikitext2-test.txt books-heldout.txt --tasks tasks --json out.json

Every candidate is a cell that is kept in the results folder: an interrupted run goes on.
``--quick`` does it in a minute on a tiny random model.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
from cells import cell
from common import Figure, emit
from healing import Setup, Winner, quick_setup
from healing_choices import SETTINGS
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from texts import parsed, text_parser

from evocompress.core.config import HealConfig
from evocompress.core.types import Candidate
from evocompress.evaluation.calibration.fresh import FreshText
from evocompress.evaluation.heldout import heldout_quality
from evocompress.evaluation.tasks import ask, find_tasks
from evocompress.export import materialize
from evocompress.export.reload import read_checkpoint
from evocompress.healing import heal
from evocompress.search.operators.mutation import exchange
from evocompress.space import sampling

Values = NDArray[np.float64]

DISTANCES = (1, 2, 4, 8, 16, 32)
"""How often a changed copy of the winner is changed."""

RESAMPLINGS = 2000

VALIDATION = "validation"
"""The sequences of a healing that choose its best step."""


def main() -> None:
    """Runs or continues the study and prints its figures."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        setup = quick_setup(Path(scratch)) if arguments.quick else _full(arguments)
        lengths = (64, 128, 512) if arguments.quick else tuple(arguments.tokens)
        count = 6 if arguments.quick else arguments.candidates
        figures: dict[str, Figure] = {}
        tasks = (arguments.tasks, arguments.questions)
        for setting in setup.spaces:
            rows = Study(setup, setting, lengths, *tasks).rows(count)
            figures |= _figures(setting, rows, lengths)
        emit("proxy_validity", figures, arguments.json)


def _arguments() -> argparse.Namespace:
    parser = text_parser(__doc__.splitlines()[0], "proxy_validity")
    parser.add_argument("--tasks", type=Path, help="folder of tasks, NAME.jsonl")
    parser.add_argument("--questions", type=int, default=500, help="of each task")
    parser.add_argument("--tokens", type=int, nargs="+", default=[2_000, 10_000, 100_000])
    parser.add_argument("--candidates", type=int, default=24)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    return parsed(parser)


def _full(arguments: argparse.Namespace) -> Setup:
    return Setup.of_files(
        arguments.results,
        arguments.calibration,
        arguments.heldout,
        arguments.settings,
        sequences=arguments.sequences,
        healing={"source": {arguments.text: 1.0, arguments.calibration: 1.0}},
    )


class Study(Winner):
    """Candidates of one setting before and after healings of several lengths."""

    def __init__(
        self, setup: Setup, setting: str, lengths: Sequence[int], tasks: Path | None, limit: int
    ) -> None:
        """Searches nothing yet; of each task of a folder as many questions as the limit says."""
        super().__init__(setup, setting, keep_library=True)
        self._lengths = lengths
        names = sorted(path.stem for path in tasks.glob("*.jsonl")) if tasks else []
        self._tasks = find_tasks(names, tasks)
        self._limit = limit

    def rows(self, count: int) -> list[dict[str, Any]]:
        """One for each candidate."""
        return [
            cell(self.folder / "candidates", f"{number}", partial(self._row, name, make))
            for number, (name, make) in enumerate(self._makers(count))
        ]

    def _makers(self, count: int) -> list[tuple[str, Callable[[], Candidate]]]:
        """Names of the candidates, and what makes them."""
        fixed: list[tuple[str, Callable[[], Candidate]]] = [
            ("winner", self._winner),
            ("even", lambda: self.context.space.candidate(sampling.uniform(self.context.space))),
        ]
        rest = count - len(fixed)
        changed = [
            (f"changed {DISTANCES[n % len(DISTANCES)]} times", n) for n in range(3 * rest // 4)
        ]
        random = [("random", n) for n in range(rest - len(changed))]
        fixed += [(name, partial(self._changed, n)) for name, n in changed]
        return fixed + [(name, partial(self._random, n)) for name, n in random]

    def _winner(self) -> Candidate:
        return self.run.read_winner().candidate

    def _changed(self, number: int) -> Candidate:
        space, rng = self.context.space, np.random.default_rng([1, number])
        genome = space.genome(self._winner())
        for _ in range(DISTANCES[number % len(DISTANCES)]):
            genome = exchange(space, genome, rng)
        return space.candidate(genome)

    def _random(self, number: int) -> Candidate:
        space = self.context.space
        return space.candidate(sampling.random(space, np.random.default_rng([2, number])))

    def _row(self, name: str, make: Callable[[], Candidate]) -> dict[str, Any]:
        """A candidate's KL on the search part and on held-out texts, before and after healings."""
        loaded, calibration = self.context.loaded, self.context.calibration
        folder = self.folder / "present"
        shutil.rmtree(folder, ignore_errors=True)
        plain = materialize(loaded, self.context.library, make(), folder / "plain")
        paths, validated = {0: plain}, {}
        for tokens in self._lengths:
            given = HealConfig.model_validate({**self.setup.healing, "tokens": tokens})
            config = given.sized(calibration.length).at(calibration.length)
            text = FreshText(config, self.context.config.calibration, loaded, calibration)
            train, validation = text.take_both(config.sequences, config.validation_sequences)
            report = heal(plain, loaded, train, validation, config, folder / str(tokens))
            paths[tokens] = Path(report.checkpoint)
            validated[f"{VALIDATION}_{tokens}"] = report.best_kl
        row = {"candidate": name} | self._divergences(paths) | validated
        row |= self._answers(Path(report.checkpoint))
        shutil.rmtree(folder)
        return row

    def _divergences(self, paths: Mapping[int, Path]) -> dict[str, float]:
        """KL of the checkpoints after so many tokens, on every text."""
        dense = self.context.loaded.model
        models = {str(tokens): read_checkpoint(path, dense) for tokens, path in paths.items()}
        search = torch.cat(self.context.calibration.search)[: self.setup.sequences]
        return {
            f"{text}_{tokens}": quality.kl
            for text, sequences in {"search": search, **self.judges}.items()
            for tokens, quality in heldout_quality(dense, models, sequences).items()
        }

    def _answers(self, path: Path) -> dict[str, float]:
        """The share of wrong answers, the mean over tasks."""
        if not self._tasks:
            return {}
        models = {"it": read_checkpoint(path, self.context.loaded.model)}
        found = ask(self.context.loaded, models, self._tasks, limit=self._limit)
        right = [float(each.values["it"].mean()) for each in found if each.measure == "acc"]
        return {"wrong": 1 - float(np.mean(right))}


def _figures(
    setting: str, rows: Sequence[Mapping[str, Any]], lengths: Sequence[int]
) -> dict[str, Figure]:
    """Correlations and regrets of a setting."""
    texts = [key.rpartition("_")[0] for key in rows[0] if key.endswith(f"_{lengths[-1]}")]
    judged = [text for text in texts if text not in ("search", VALIDATION)]
    kl = np.mean([_column(rows, f"{text}_{lengths[-1]}") for text in judged], axis=0)
    judges = {"": kl} | ({"wrong_": _column(rows, "wrong")} if "wrong" in rows[0] else {})
    headings = ("judge", "picked by", "Spearman", "Kendall", "regret of the pick")
    table = Table(*headings, title=setting, box=SIMPLE)
    figures: dict[str, Figure] = {f"{setting}_candidates": len(rows)}
    for (judge, after), (name, key) in product(judges.items(), _picks(rows, lengths).items()):
        before = _column(rows, key)
        rho, low, high = _interval(before, after)
        tau = float(scipy.stats.kendalltau(before, after).statistic)
        regret = float(after[before.argmin()] / after.min() - 1)
        interval = f"{rho:.3f} ({low:.3f} to {high:.3f})"
        table.add_row(judge or "KL", name, interval, f"{tau:.3f}", f"{regret:.1%}")
        figures |= {
            f"{setting}_{judge}rho_{name}": rho,
            f"{setting}_{judge}rho_{name}_low": low,
            f"{setting}_{judge}rho_{name}_high": high,
            f"{setting}_{judge}tau_{name}": tau,
            f"{setting}_{judge}regret_{name}": regret,
        }
    Console().print(table)
    return figures


def _picks(rows: Sequence[Mapping[str, Any]], lengths: Sequence[int]) -> dict[str, str]:
    """What a candidate may be picked by, with its key; older cells have no validation values."""
    picks = {"plain": "search_0"} | {f"aware_{n}": f"search_{n}" for n in lengths[:-1]}
    picks |= {f"validated_{n}": f"{VALIDATION}_{n}" for n in lengths[:-1]}
    return {name: key for name, key in picks.items() if all(key in row for row in rows)}


def _column(rows: Sequence[Mapping[str, Any]], key: str) -> Values:
    return np.asarray([row[key] for row in rows], dtype=np.float64)


def _interval(before: Values, after: Values) -> tuple[float, float, float]:
    """Spearman's correlation with its 95% interval by resampling the candidates."""
    rng = np.random.default_rng(0)

    def rho(chosen: NDArray[np.int64]) -> float:
        if not (np.ptp(before[chosen]) and np.ptp(after[chosen])):
            return float("nan")  # a draw of one candidate has no ranks
        return float(scipy.stats.spearmanr(before[chosen], after[chosen]).statistic)

    every = np.arange(len(before))
    draws = [rho(rng.choice(every, len(every))) for _ in range(RESAMPLINGS)]
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return rho(every), float(low), float(high)


if __name__ == "__main__":
    main()
