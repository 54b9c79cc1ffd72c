"""Depth and width baselines against the search, at three sizes of SmolLM2-135M, on WikiText-2.

The parameters of the blocks are brought to 85, 70 and 55%. A seed draws the calibration
sequences of every method: 128 for the level library and 64 for everything that is compared.
Two tables: each method with its native criterion, and all methods with one library, made by
structured OBS, so that allocation and criterion are told apart. Held-out quality is measured
before any healing on the first 20 sequences of the held-out file.

    python benchmarks/structured.py --calibration valid.txt --heldout test.txt --json out.json

Libraries, searches and every measurement are kept in the results folder: an interrupted run goes
on. ``--quick`` does the same in a minute on a tiny random model and text of its own.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import cell
from common import Figure, emit
from rich.console import Console
from safetensors.torch import save_file

from evocompress import run
from evocompress.apply import LiveModel
from evocompress.config import ModelConfig, RunConfig
from evocompress.evaluation import heldout_quality
from evocompress.journal import Journal
from evocompress.models import LoadedModel, load
from evocompress.progress import Reporter
from evocompress.proxies.sources import token_streams
from evocompress.run_folder import RunFolder
from evocompress.types import Answer, Candidate, Request
from evocompress.workbench import Workbench

BUDGETS = (0.85, 0.70, 0.55)
SHARED = "obs_structured"
DEPTH = {"drop": {"units": ["block"], "protect": []}}
QUARTERS = (0.25, 0.5, 0.75)
SUBLAYERS = {"drop": {"units": ["attention", "mlp"], "protect": []}}


@dataclass(frozen=True)
class Method:
    """One contestant.

    Attributes:
        search: Name and settings of its searcher.
        space: What it may do.
        native: The criterion it was published with; ``None`` where it only removes.
    """

    search: Mapping[str, Any]
    space: Mapping[str, Any]
    native: str | None = None


@dataclass(frozen=True)
class Setup:
    """Everything that the full and the quick run do not share.

    Attributes:
        model: Source and dtype.
        calibration: Sizes of the parts.
        channels: FFN widths, as fractions.
        multiple_of: Of the number of channels.
        methods: The contestants by name.
        text: Calibration text, from which the seeds draw.
        heldout: Held-out text.
        results: Where everything is kept.
    """

    model: Mapping[str, Any]
    calibration: Mapping[str, Any]
    channels: tuple[float, ...]
    multiple_of: int
    methods: Mapping[str, Method]
    text: str
    heldout: str
    results: Path


def main() -> None:
    """Runs or continues the comparison and prints its figures."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        setup = _quick(Path(scratch)) if arguments.quick else _full(arguments)
        emit("structured", _figures(setup, arguments.seeds), arguments.json)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calibration", help="text file from which the seeds draw")
    parser.add_argument("--heldout", help="text file for the held-out sequences")
    parser.add_argument("--results", type=Path, default=Path("results/structured"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", help="only these")
    parser.add_argument("--json")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if not arguments.quick and not (arguments.calibration and arguments.heldout):
        parser.error("give --calibration and --heldout, or --quick")
    return arguments


def _methods(
    channels: tuple[float, ...],
    multiple_of: int,
    search: Mapping[str, Any],
    tokens: tuple[int, int],
) -> dict[str, Method]:
    """The contestants; `tokens` are those on which greedy methods try units, and widths."""
    width = {"channels": channels, "multiple_of": multiple_of}
    free = {"width": {**width, "protect": []}, **SUBLAYERS}
    # Every step tries every layer: in small steps MultiPruner would ask for many millions.
    coarse = {"width": {**width, "channels": QUARTERS, "protect": []}, **SUBLAYERS}
    tried = {"candidate_tokens": tokens[0]}
    steps = {"width_tokens": tokens[1]}
    return {
        "uniform": Method({"name": "uniform"}, {"width": {**width, "uniform": True}}, "minitron"),
        "shortgpt": Method({"name": "shortgpt"}, DEPTH),
        "sleb": Method({"name": "sleb", **tried}, DEPTH),
        "blockpruner": Method({"name": "blockpruner", **tried}, SUBLAYERS),
        "flap": Method({"name": "flap"}, free, "flap"),
        "multipruner": Method({"name": "multipruner", **tried, **steps}, coarse, "magnitude"),
        "search": Method(search, {"width": width, "drop": {"units": ["attention", "mlp"]}}, SHARED),
    }


def _full(arguments: argparse.Namespace) -> Setup:
    channels = tuple(step / 16 for step in range(1, 16))
    search = {
        "name": "evopress",
        "effect_rounds": 3,
        "effect_levels": 2,
        "effect_tokens": 1024,
        "generations": 10,
        "offspring": 16,
        "survivors": (4, 1),
        "stage_tokens": (1024, 4096),
        "tokens": 660_000,
    }
    methods = _methods(channels, 96, search, (1024, 512))
    chosen = arguments.methods or list(methods)
    return Setup(
        model={"source": "demo:smollm2-135m", "dtype": "bfloat16"},
        calibration={
            "library_sequences": 128,
            "search_sequences": 64,
            "heldout_sequences": 20,
            "length": 512,
            "micro_batch": 1,
        },
        channels=channels,
        multiple_of=96,
        methods={name: methods[name] for name in chosen},
        text=arguments.calibration,
        heldout=arguments.heldout,
        results=arguments.results,
    )


def _quick(folder: Path) -> Setup:
    from evocompress.testing.tiny import tiny_checkpoint

    text = folder / "text.txt"
    text.write_text(" ".join(f"word{number * number % 97}" for number in range(4000)))
    heldout = folder / "heldout.txt"
    heldout.write_text(" ".join(f"word{number * number % 89}" for number in range(400)))
    search = {
        "name": "evopress",
        "generations": 3,
        "offspring": 8,
        "survivors": (2, 1),
        "stage_tokens": (64, 256),
    }
    channels = QUARTERS
    return Setup(
        model={"source": str(tiny_checkpoint(folder / "model", "llama"))},
        calibration={
            "library_sequences": 8,
            "search_sequences": 16,
            "heldout_sequences": 4,
            "length": 32,
            "micro_batch": 2,
        },
        channels=channels,
        multiple_of=8,
        methods=_methods(channels, 8, search, (64, 64)),
        text=str(text),
        heldout=str(heldout),
        results=folder / "results",
    )


def _figures(setup: Setup, seeds: Sequence[int]) -> dict[str, Figure]:
    """Means over the seeds of every quality, and the margins of the search."""
    reporter = Reporter()
    model = ModelConfig.model_validate(setup.model)
    loaded = load(model.source, dtype=model.dtype)
    rows = [_Seed(setup, seed, loaded, reporter).figures() for seed in seeds]
    figures: dict[str, Figure] = {"seeds": len(rows)}
    for key in rows[0]:
        values = [row[key] for row in rows]
        figures[key] = statistics.fmean(values)
        if len(values) > 1 and key.startswith("kl_"):
            figures[f"sd_{key}"] = statistics.stdev(values)
    return figures | _margins(setup.methods, figures)


def _margins(methods: Mapping[str, Method], figures: Mapping[str, Figure]) -> dict[str, Figure]:
    """The best baseline's held-out KL less the search's, in both tables."""
    margins: dict[str, Figure] = {}
    for prefix in ("", "native_"):
        for budget in BUDGETS:
            suffix = f"{100 * budget:03.0f}"
            values = {name: figures.get(f"{prefix}kl_{name}_{suffix}") for name in methods}
            ours = values.pop("search", None)
            known = [value for value in values.values() if isinstance(value, float)]
            if known and isinstance(ours, float):
                margins[f"{prefix}margin_{suffix}"] = min(known) - ours
    return margins


class _Replay:
    """An executor that computes only what none of some journals knows."""

    def __init__(self, journals: Sequence[Journal], executor: run.Executor) -> None:
        self._journals = journals
        self._executor = executor

    def map(self, requests: Sequence[Request]) -> Iterator[Answer]:
        """The answers, in order."""
        for request in requests:
            known = (journal.answer(request) for journal in self._journals)
            answer = next((found for found in known if found is not None), None)
            yield from [answer] if answer is not None else self._executor.map([request])

    def close(self) -> None:
        """Closes the executor."""
        self._executor.close()


class _Seed:
    """All runs of one draw of calibration sequences."""

    def __init__(self, setup: Setup, seed: int, loaded: LoadedModel, reporter: Reporter) -> None:
        self._setup = setup
        self._seed = seed
        self._loaded = loaded
        self._reporter = reporter
        self._folder = setup.results / f"seed{seed}"
        self._tokens = self._folder / "tokens"

    def figures(self) -> dict[str, float]:
        """Held-out KL, perplexity, parameters and tokens of every method at every budget."""
        self._draw()
        found: dict[str, float] = {}
        for name, method in self._setup.methods.items():
            for table, criterion in (("", SHARED), ("native_", method.native)):
                if criterion is not None:
                    found |= self._method(name, method, table, criterion)
                    _print(found, f"{table}kl_{name}")
        return found

    def _draw(self) -> None:
        """Writes the seed's sequences as a token file, unless they are there."""
        file = self._tokens / "tokens.safetensors"
        if file.exists():
            return
        sizes = self._setup.calibration
        (stream,) = token_streams(self._setup.text, self._loaded.tokenizer)
        length = sizes["length"]
        sequences = stream[: len(stream) // length * length].view(-1, length)
        wanted = sizes["library_sequences"] + sizes["search_sequences"]
        order = np.random.default_rng(self._seed).permutation(len(sequences))[:wanted]
        self._tokens.mkdir(parents=True, exist_ok=True)
        save_file({"tokens": sequences[torch.from_numpy(order)].contiguous()}, file)

    def _config(self, name: str, method: Method, criterion: str, budget: float) -> RunConfig:
        table = f"{name}-{criterion}-{100 * budget:03.0f}"
        space = {**method.space, "budget": {"body_params": budget}}
        calibration = {
            **self._setup.calibration,
            "source": str(self._tokens),
            "heldout_source": self._setup.heldout,
        }
        library = {
            "path": self._folder / f"library-{criterion}",
            "width_criterion": criterion,
        }
        return RunConfig.model_validate(
            {
                "name": table,
                "runs": self._folder,
                "seed": self._seed,
                "model": self._setup.model,
                "calibration": calibration,
                "space": space,
                "library": library,
                "search": method.search,
            }
        )

    def _method(self, name: str, method: Method, table: str, criterion: str) -> dict[str, float]:
        """One method at all budgets, the tightest first: looser ones replay its trajectory."""
        if "width" in method.space:
            self._build_library(criterion)
        found: dict[str, float] = {}
        journals: list[Journal] = []
        for budget in sorted(BUDGETS):
            bench = self._bench(self._config(name, method, criterion, budget))
            candidate, tokens, journal = self._search(bench, journals)
            journals.append(journal)
            quality = self._quality(bench, candidate, criterion)
            suffix = f"{name}_{100 * budget:03.0f}"
            costs = bench.space.costs(bench.space.genome(candidate)[None])
            dense = bench.space.cost_model.dense()["body_params"]
            found[f"{table}kl_{suffix}"] = quality["kl"]
            found[f"{table}ppl_{suffix}"] = quality["perplexity"]
            found[f"{table}params_{suffix}"] = costs["body_params"][0] / dense
            found[f"{table}tokens_{suffix}"] = tokens
        return found

    def _build_library(self, criterion: str) -> None:
        """Makes the library with every width that any method asks for."""
        width = {"channels": self._setup.channels, "multiple_of": self._setup.multiple_of}
        everything = Method({}, {"width": {**width, "protect": []}})
        bench = self._bench(self._config("library", everything, criterion, min(BUDGETS)))
        bench.library  # noqa: B018  (made here where it is missing)

    def _bench(self, config: RunConfig) -> Workbench:
        bench = Workbench(config, RunFolder(config.folder), self._reporter)
        bench.__dict__["loaded"] = self._loaded
        return bench

    def _search(self, bench: Workbench, known: Sequence[Journal]) -> tuple[Candidate, int, Journal]:
        """The winner of a run, the tokens it asked for, and its journal."""
        bench.folder.path.mkdir(parents=True, exist_ok=True)
        journal = Journal(bench.folder.journal, bench.header())
        tokens = bench.config.search.tokens
        with (
            LiveModel(self._loaded, bench.library) as live,
            closing(bench.executor(live)) as executor,
            self._reporter.stage(bench.config.name),
        ):
            found = run.search(
                bench.searcher(),
                _Replay(known, executor),
                journal,
                bench.calibration.pool,
                tokens=tokens,
            )
        return found.best.candidate, journal.steps[-1].requested, journal

    def _quality(self, bench: Workbench, candidate: Candidate, criterion: str) -> dict[str, float]:
        name = f"{criterion}-{candidate.id}"
        return cell(self._folder / "quality", name, lambda: _measure(bench, candidate))


def _measure(bench: Workbench, candidate: Candidate) -> dict[str, float]:
    dense = bench.loaded.model
    twin = copy.deepcopy(dense)
    LiveModel(replace(bench.loaded, model=twin), bench.library).apply(candidate)
    quality = heldout_quality(dense, {"candidate": twin}, bench.calibration.heldout)["candidate"]
    return {"kl": quality.kl, "kl_top256": quality.kl_topk, "perplexity": quality.perplexity}


def _print(found: Mapping[str, float], prefix: str) -> None:
    shown = {key: round(value, 4) for key, value in found.items() if key.startswith(prefix)}
    Console().print(json.dumps(shown))


if __name__ == "__main__":
    main()
