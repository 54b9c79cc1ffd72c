"""What healing brings: the text, what is trained, the loss and the tokens, on SmolLM2-135M.

Two winners of `auto`: 70% of the parameters of the blocks (widths and drops), and 60% zeros. Each
is healed anew for every choice and every number of tokens, with a schedule of that length, and
then judged on held-out texts that nothing was searched, healed or chosen on: KL to the dense model
and perplexity. ``former default`` is what healing did before it had text of its own: the sequences
of library and search again and again, four of them a step.

    python benchmarks/healing.py --calibration wikitext2-valid.txt --text books-train.txt
        --heldout wikitext2-test.txt books-heldout.txt --tokens 50000 200000 500000 --json out.json

Every healing is a cell that is kept in the results folder: an interrupted run goes on.
``--choices`` takes some of them, ``--heal '{"learning_rate": 1e-4}'`` changes the recipe of all
(into another ``--results``), ``--quick`` does all in a minute on a tiny random model.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import cell
from common import Figure, emit
from healing_choices import (
    CALIBRATION,
    FORMER,
    MIXED,
    QUICK_BITS,
    SETTINGS,
    TYPED,
    choices,
    typed_choices,
)
from permuted import permuted_copy
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from texts import calibration_of, parsed, text_parser
from torch import Tensor

from evocompress import api
from evocompress.core.config import HealConfig, RunConfig
from evocompress.core.progress import Reporter, Silent
from evocompress.evaluation.calibration.fresh import FreshText
from evocompress.evaluation.calibration.sources import token_streams
from evocompress.evaluation.heldout import heldout_quality
from evocompress.export.reload import read_checkpoint
from evocompress.healing import heal
from evocompress.pipeline.context import RunContext
from evocompress.pipeline.run_folder import RunFolder


@dataclass(frozen=True)
class Setup:
    """What is healed, on which text, and what it is judged on.

    Attributes:
        folder: Of runs and cells.
        model: Settings of the model.
        calibration: Settings of the calibration; its held-out part is not used.
        spaces: Search spaces by setting.
        search: Settings of the search.
        heldout: Text files that judge.
        sequences: How many of each.
        tokens: How many to heal with.
        choices: Changes of the healing by name, where no matrix has a type.
        typed: The same where matrices have, in a model whose channels are permuted.
        healing: What all choices have in common.
    """

    folder: Path
    model: Mapping[str, Any]
    calibration: Mapping[str, Any]
    spaces: Mapping[str, Mapping[str, Any]]
    search: Mapping[str, Any]
    heldout: tuple[str, ...]
    sequences: int
    tokens: tuple[int, ...] = ()
    choices: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    typed: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    healing: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_files(
        cls,
        folder: Path,
        calibration: str,
        heldout: Sequence[str],
        settings: Sequence[str],
        *,
        sequences: int = 40,
        **more: Any,
    ) -> Setup:
        """SmolLM2-135M, searched on a text file and judged on some sequences of others."""
        return cls(
            folder=folder,
            model={"source": "demo:smollm2-135m"},
            calibration=calibration_of(calibration),
            spaces={name: (SETTINGS | TYPED)[name] for name in settings},
            search={"name": "auto", "tokens": 220_000},
            heldout=tuple(heldout),
            sequences=sequences,
            **more,
        )


def main() -> None:
    """Runs or continues the healings and prints their figures."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        setup = quick_setup(Path(scratch), typed=True) if arguments.quick else _full(arguments)
        figures: dict[str, Figure] = {}
        for setting in setup.spaces:
            rows = Winner(setup, setting).rows()
            _print(setting, rows)
            figures |= _flat(setting, rows)
        emit("healing", figures, arguments.json)


def _arguments() -> argparse.Namespace:
    parser = text_parser(__doc__.splitlines()[0], "healing")
    parser.add_argument("--tokens", type=int, nargs="+", default=[50_000, 200_000, 500_000])
    every = list(SETTINGS | TYPED)
    parser.add_argument("--settings", nargs="+", default=every, choices=every)
    parser.add_argument("--choices", nargs="+", help="only these, of any setting")
    parser.add_argument("--heal", type=json.loads, default={}, help="settings of all, as JSON")
    return parsed(parser)


def _full(arguments: argparse.Namespace) -> Setup:
    files = (arguments.text, arguments.calibration)
    every, typed = choices(*files), typed_choices(*files)
    wanted = set(arguments.choices or [*every, *typed])
    return Setup.of_files(
        arguments.results,
        arguments.calibration,
        arguments.heldout,
        arguments.settings,
        sequences=arguments.sequences,
        tokens=tuple(arguments.tokens),
        choices={name: changes for name, changes in every.items() if name in wanted},
        typed={name: changes for name, changes in typed.items() if name in wanted},
        healing=arguments.heal,
    )


def quick_setup(folder: Path, *, typed: bool = False) -> Setup:
    """A tiny random model and texts of its own; with a space of types."""
    from evocompress.testing.tiny import tiny_checkpoint

    for name, prime in (("one", 2999), ("two", 3001), ("three", 3011)):
        words = (f"word{number * number % prime}" for number in range(prime))
        (folder / f"{name}.txt").write_text(" ".join(words))
    one, two, three = (str(folder / f"{name}.txt") for name in ("one", "two", "three"))
    return Setup(
        folder=folder / "results",
        model={"source": str(tiny_checkpoint(folder / "model", "llama"))},
        calibration={
            "source": one,
            "library_sequences": 6,
            "search_sequences": 8,
            "heldout_sequences": 1,
            "length": 32,
            "micro_batch": 2,
        },
        spaces={
            "widths": {"width": {"multiple_of": 8}, "budget": {"body_params": 0.8}},
            "zeros": {"sparsity": {"target": 0.5, "step": 128, "levels": 2}},
        }
        | ({"bits": QUICK_BITS} if typed else {}),
        search={"name": "auto", "tokens": 4000},
        heldout=(three,),
        sequences=4,
        tokens=(512,),
        choices=choices(two, one),
        typed=typed_choices(two, one),
        healing={"validation_sequences": 2},
    )


class Winner:
    """The winner of one setting, and its healings."""

    def __init__(self, setup: Setup, setting: str, *, keep_library: bool = False) -> None:
        """Searches nothing yet; the level library is removed after that unless it is kept."""
        self.setup = setup
        self.folder = setup.folder / setting
        self._setting = setting
        self._keep_library = keep_library

    def rows(self) -> list[dict[str, Any]]:
        """One for each choice and number of tokens, the first without any healing."""
        found = [self._measured("none", 0, lambda: (self.run.checkpoint, {}))]
        choices = self.setup.typed if self._typed else self.setup.choices
        for tokens in self.setup.tokens:
            for name, changes in choices.items():
                found.append(self._healed(name, tokens, changes))
        return found

    @property
    def _typed(self) -> bool:
        """Whether matrices have types."""
        return "bits" in self.setup.spaces[self._setting]

    @cached_property
    def run(self) -> RunFolder:
        """The run, searched and materialized where that is not done."""
        setup, path = self.setup, self.folder / "run"
        model = dict(setup.model)
        if self._typed:
            model["source"] = str(permuted_copy(model["source"], 0, setup.folder / "models"))
        config = RunConfig.model_validate(
            {
                "name": "run",
                "runs": str(self.folder),
                "model": model,
                "calibration": dict(setup.calibration),
                "space": dict(setup.spaces[self._setting]),
                "search": dict(setup.search),
            }
        )
        folder = RunFolder(path)
        if not folder.checkpoint.exists():
            api.search(config, resume=path.exists(), reporter=Reporter())
            api.materialize(path)
            if not self._keep_library:
                shutil.rmtree(path / "library")
        return folder

    @cached_property
    def context(self) -> RunContext:
        """The run's model, text and space."""
        return RunContext(self.run.config(), self.run, Silent())

    @cached_property
    def judges(self) -> dict[str, Tensor]:
        """Held-out sequences by the names of their files."""
        tokenizer = self.context.loaded.tokenizer
        assert tokenizer is not None
        length, count = self.context.config.calibration.length, self.setup.sequences
        return {
            Path(source).stem: next(iter(token_streams(source, tokenizer)))[: count * length].view(
                -1, length
            )
            for source in self.setup.heldout
        }

    def _healed(self, name: str, tokens: int, changes: Mapping[str, Any]) -> dict[str, Any]:
        settings = {**self.setup.healing, **changes, "tokens": tokens}
        settings["tokens"] //= settings.get("average", 1)  # of all of them together

        def made() -> tuple[Path, dict[str, Any]]:
            context = self.context
            calibration = context.calibration
            config = (
                HealConfig.model_validate(settings).sized(calibration.length).at(calibration.length)
            )
            config = config.model_copy(update={"evaluate_every": max(1, config.steps // 4)})
            train, validation = self._text(name, config)
            out = self.folder / "healing"
            shutil.rmtree(out, ignore_errors=True)
            began = time.monotonic()
            report = heal(self.run.checkpoint, context.loaded, train, validation, config, out)
            seconds = time.monotonic() - began
            return Path(report.checkpoint), {
                "seconds": seconds,
                "tokens_per_second": report.tokens / seconds,
                "steps": report.steps,
                "best_step": report.best_step,
                "sequences": len(train),
            }

        return self._measured(name, tokens, made)

    def _text(self, name: str, config: HealConfig) -> tuple[Tensor, Tensor]:
        calibration = self.context.calibration
        if name in (CALIBRATION, FORMER):
            tokens = torch.cat([calibration.library, *calibration.search])
            kept = config.validation_sequences
            return tokens[:-kept], tokens[-kept:]
        cut = self.context.config.calibration
        text = FreshText(config, cut, self.context.loaded, calibration)
        return text.take_both(config.sequences, config.validation_sequences)

    def _measured(self, name: str, tokens: int, made: Any) -> dict[str, Any]:
        def compute() -> dict[str, Any]:
            path, facts = made()
            dense = self.context.loaded.model
            healed = read_checkpoint(path, dense)
            row: dict[str, Any] = {"choice": name, "tokens": tokens, **facts}
            for text, sequences in self.judges.items():
                found = heldout_quality(dense, {"healed": healed}, sequences)["healed"]
                row |= {f"kl_{text}": found.kl, f"ppl_{text}": found.perplexity}
                row[f"kl_per_sequence_{text}"] = list(found.kl_per_sequence)
            return row

        return cell(self.folder / "cells", f"{name} {tokens}", compute)


def _values(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The figures of a row that a table shows."""
    for key, value in row.items():
        if key.startswith(("kl_", "ppl_")) and isinstance(value, float):
            yield key, value


def _difference(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """The mean over texts of the KL less that of `MIXED` with as many tokens, and its interval.

    A model that is not healed is compared with the most tokens.

    Returns:
        The difference and half of its 95% interval, by the sequences, which both were measured on;
        nothing where there is no other.
    """
    tokens = row["tokens"] or max(other["tokens"] for other in rows)
    others = (one for one in rows if (one["choice"], one["tokens"]) == (MIXED, tokens))
    if (other := next(others, None)) is None:
        return []
    keys = [key for key in row if key.startswith("kl_per_sequence_")]
    each = [np.subtract(row[key], other[key]) for key in keys]
    error = np.sqrt(sum(one.var(ddof=1) / len(one) for one in each)) / len(each)
    return [float(np.mean([one.mean() for one in each])), float(1.96 * error)]


def _print(setting: str, rows: list[dict[str, Any]]) -> None:
    keys = [key for key, _ in _values(rows[0]) if key.startswith("kl_")]
    texts = [key.removeprefix("kl_") for key in keys]
    heading = ("tokens", "choice", *texts, "mean", "tokens/s")
    title = f"{setting}: KL; mean: difference to {MIXED} with its 95% interval"
    table = Table(*heading, title=title, box=SIMPLE)
    for row in sorted(rows, key=lambda row: (row["tokens"], row[keys[0]])):
        values = [f"{row[key]:.4g}" for key in keys]
        found, speed = _difference(row, rows), row.get("tokens_per_second")
        values.append(f"{found[0]:+.3f} ± {found[1]:.3f}" if found else "")
        table.add_row(f"{row['tokens']:,}", row["choice"], *values, f"{speed:.0f}" if speed else "")
    Console().print(table)


def _flat(setting: str, rows: list[dict[str, Any]]) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    for row in rows:
        name = f"{setting}_{row['choice'].replace(' ', '_')}_{row['tokens']}"
        figures |= {f"{name}_{key}": value for key, value in _values(row)}
        pair = zip(("difference", "difference_interval"), _difference(row, rows), strict=False)
        figures |= {f"{name}_{key}": value for key, value in pair}
    return figures


if __name__ == "__main__":
    main()
