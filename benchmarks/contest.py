"""Runs of several methods on one draw of calibration sequences, each kept and resumable."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from heldout import heldout
from rich.console import Console
from safetensors.torch import save_file

from evocompress.compression.live_model import LiveModel
from evocompress.core.config import RunConfig
from evocompress.core.progress import Reporter
from evocompress.core.requests import Answer, Evaluate, Request
from evocompress.core.types import Candidate
from evocompress.evaluation.calibration.sources import token_streams
from evocompress.models.loading import LoadedModel
from evocompress.pipeline import loop
from evocompress.pipeline.context import RunContext
from evocompress.pipeline.journal import Journal
from evocompress.pipeline.run_folder import RunFolder

BUDGETS = (0.85, 0.70, 0.55)
SHARED = "obs_structured"


@dataclass(frozen=True)
class Method:
    """One contestant.

    Attributes:
        search: Name and settings of its searcher.
        space: What it may do.
        native: The criterion it was published with; of no account where it only removes.
        metric: The proxy by which it compares.
    """

    search: Mapping[str, Any]
    space: Mapping[str, Any]
    native: str = SHARED
    metric: str = "kl"


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


class _Replay:
    """An executor that computes only what no journal knows.

    Args:
        journals: Of the same library.
        others: Of other libraries, from which candidates that only remove take nothing.
        executor: Computes the rest.
    """

    def __init__(
        self, journals: Sequence[Journal], others: Sequence[Journal], executor: loop.Executor
    ) -> None:
        self._journals = journals
        self._others = others
        self._executor = executor

    def map(self, requests: Sequence[Request]) -> Iterator[Answer]:
        """The answers, those that are known first."""
        unknown = []
        for request in requests:
            answer = self._known(request)
            if answer is None:
                unknown.append(request)
            else:
                yield answer
        yield from self._executor.map(unknown)

    def close(self) -> None:
        """Closes the executor."""
        self._executor.close()

    def _known(self, request: Request) -> Answer | None:
        removes = isinstance(request, Evaluate) and all(
            level.drop for _, level in request.candidate.levels
        )
        places = [*self._journals, *(self._others if removes else ())]
        answers = (journal.answer(request) for journal in places)
        return next((answer for answer in answers if answer is not None), None)


class Seed:
    """All runs of one draw of calibration sequences."""

    def __init__(self, setup: Setup, seed: int, loaded: LoadedModel, reporter: Reporter) -> None:
        self._setup = setup
        self._seed = seed
        self._loaded = loaded
        self._reporter = reporter
        self._folder = setup.results / f"seed{seed}"
        self._tokens = self._folder / "tokens"
        self._by_metric: dict[str, list[Journal]] = {}

    def figures(self) -> dict[str, float]:
        """Held-out KL, perplexity, parameters and tokens of every method at every budget."""
        self._draw()
        found: dict[str, float] = {}
        with ExitStack() as journals:
            for name, method in self._setup.methods.items():
                by_criterion = {
                    criterion: self._method(name, method, criterion, journals)
                    for criterion in dict.fromkeys((SHARED, method.native))
                }
                for table, criterion in {"": SHARED, "native_": method.native}.items():
                    values = by_criterion[criterion]
                    found |= {f"{table}{key}": value for key, value in values.items()}
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
                "name": f"{name}-{criterion}-{100 * budget:03.0f}",
                "runs": self._folder,
                "seed": self._seed,
                "model": self._setup.model,
                "calibration": calibration,
                "space": space,
                "library": library,
                "proxy": {"kind": method.metric},
                "search": method.search,
            }
        )

    def _method(
        self, name: str, method: Method, criterion: str, journals: ExitStack
    ) -> dict[str, float]:
        """One method at all budgets, the tightest first: looser ones replay its trajectory."""
        if "width" in method.space:
            self._build_library(criterion)
        found: dict[str, float] = {}
        others = self._by_metric.setdefault(method.metric, [])
        known: list[Journal] = []
        for budget in sorted(BUDGETS):
            context = self._context(self._config(name, method, criterion, budget))
            context.folder.path.mkdir(parents=True, exist_ok=True)
            journal = journals.enter_context(Journal(context.folder.journal, context.header()))
            candidate = self._search(context, journal, known)
            known.append(journal)
            quality = heldout(context, candidate, self._folder / "quality")
            suffix = f"{name}_{100 * budget:03.0f}"
            found[f"kl_{suffix}"] = quality["kl"]
            found[f"ppl_{suffix}"] = quality["perplexity"]
            found[f"params_{suffix}"] = _share(context, candidate)
            found[f"tokens_{suffix}"] = journal.steps[-1].requested
        others += known
        return found

    def _build_library(self, criterion: str) -> None:
        """Makes the library with every width that any method asks for."""
        width = {"channels": self._setup.channels, "multiple_of": self._setup.multiple_of}
        everything = Method({}, {"width": {**width, "protect": []}})
        context = self._context(self._config("library", everything, criterion, min(BUDGETS)))
        context.library  # noqa: B018  (made here where it is missing)

    def _context(self, config: RunConfig) -> RunContext:
        context = RunContext(config, RunFolder(config.folder), self._reporter)
        context = context.with_parts(loaded=self._loaded)
        return context

    def _search(self, context: RunContext, journal: Journal, known: Sequence[Journal]) -> Candidate:
        """The winner of a run."""
        with (
            LiveModel(self._loaded, context.library) as live,
            closing(context.executor(live)) as executor,
            self._reporter.stage(context.config.name),
        ):
            return loop.search(
                context.searcher(),
                _Replay(known, self._by_metric[context.config.proxy.kind], executor),
                journal,
                context.calibration.pool,
                tokens=context.config.search.tokens,
            ).best.candidate


def _share(context: RunContext, candidate: Candidate) -> float:
    """The candidate's parameters in the blocks, as a fraction of the dense model's."""
    costs = context.space.cost_model.of([candidate])["body_params"]
    return float(costs[0] / context.space.cost_model.dense()["body_params"])


def _print(found: Mapping[str, float], prefix: str) -> None:
    shown = {key: round(value, 4) for key, value in found.items() if key.startswith(prefix)}
    Console().print(json.dumps(shown))
