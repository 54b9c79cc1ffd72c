"""Sizes and speed of dense and compressed checkpoints in transformers, vLLM and llama.cpp.

The compressed model is drawn at random from a space of widths and dropped sub-layers, at 0.75 of
the parameters; its weights are those of the dense model, cut at random: speed does not depend on
them. 8 prompts of 32 tokens are continued by 32 tokens each, one after the other, in float32, and
with llama.cpp in Q8_0 as well. vLLM gets the format that is chosen for it, and format ``deci``.
Engines are run in the environment that `make engines` makes (or that ``EVOCOMPRESS_ENGINES``
names); one that is not there has no figures.

Figures: `{run}_{case}_mib` of the weights; `{run}_{case}_tokens_per_second`, of new tokens, prompts
included, the median of several repeats; `{run}_{case}_equal`, the prompts after which the engine's
tokens are transformers' (a token whose logit is within 1e-3 of the best counts, and is printed).

    python benchmarks/engines.py --json engines.json
    python benchmarks/engines.py --quick
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import Figure, emit
from transformers import PreTrainedModel

from evocompress.core.config import SpaceConfig
from evocompress.core.types import DROP, Candidate
from evocompress.export import FORMATS, choose_for, materialize, read_record
from evocompress.export.reload import read_checkpoint
from evocompress.models.loading import LoadedModel, load
from evocompress.space import sampling
from evocompress.space.build import build_space
from evocompress.testing.engines import first_difference, generate, why_missing
from evocompress.testing.plain_library import PlainLibrary
from evocompress.testing.tiny import windowless

Figures = dict[str, Figure]

RUNS = {
    "vllm": ("vllm", "auto", None),
    "vllm_deci": ("vllm", "deci", None),
    "llama_cpp": ("llama.cpp", "auto", None),
    "llama_cpp_q8_0": ("llama.cpp", "auto", "q8_0"),
}
"""{run: (engine, format, type of weights)}."""

PROMPTS = 8
SHARE = 0.75


def main() -> None:
    """Measure, print and write."""
    arguments = _arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    loaded = (
        windowless("llama", hidden=256)
        if arguments.quick
        else load(arguments.model, dtype="float32")
    )
    length, new, repeats = (6, 4, 1) if arguments.quick else (32, 32, arguments.repeats)
    draws = torch.Generator().manual_seed(0)
    prompts = torch.randint(5, 240, (PROMPTS, length), generator=draws).tolist()
    candidates = {"dense": Candidate(), "compressed": compressed(loaded)}
    figures: Figures = {"model": loaded.source, "threads": torch.get_num_threads()}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        cases = [
            Case(name, each, loaded, folder / name, prompts, new)
            for name, each in candidates.items()
        ]
        # Dense and compressed follow each other: a machine's speed changes within minutes.
        for case in cases:
            figures |= case.transformers(repeats)
        for run in RUNS:
            for case in cases:
                figures |= case.engine(run, repeats)
    emit("engines", figures, arguments.json)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--model", default="demo:smollm2-135m")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    return parser.parse_args()


def compressed(loaded: LoadedModel) -> Candidate:
    """A random candidate within the budget that lacks an attention and an MLP of other blocks."""
    family, model = loaded.family, loaded.model
    space = build_space(
        family.units(model),
        family.architecture(model),
        SpaceConfig.model_validate(
            {"width": {}, "drop": {}, "budget": {"params": SHARE}, "fits": "gguf"}
        ),
        obstacle=partial(FORMATS["gguf"].obstacle, loaded),
    )
    rng = np.random.default_rng(0)
    while True:
        candidate = space.candidate(sampling.random(space, rng))
        lost = [name.rsplit(".", 1) for name, level in candidate.levels if level == DROP]
        alone = {(block, kind) for block, kind in lost if sum(b == block for b, _ in lost) == 1}
        if {kind for _, kind in alone} == {"attention", "mlp"}:
            return candidate


class Case:
    """One candidate, its prompts and how transformers continues them."""

    def __init__(
        self,
        name: str,
        candidate: Candidate,
        loaded: LoadedModel,
        folder: Path,
        prompts: list[list[int]],
        new: int,
    ) -> None:
        """It is materialized in format ``hf``."""
        self._name, self._candidate, self._loaded = name, candidate, loaded
        self._folder, self._prompts, self._new = folder, prompts, new
        self._library = PlainLibrary(loaded)
        self._hf = materialize(loaded, self._library, candidate, folder / "hf")
        self._model = read_checkpoint(self._hf, loaded.model)
        self._tokens = self._continued()

    def transformers(self, repeats: int) -> Figures:
        """Size and speed in transformers."""
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            self._continued()
            seconds.append(time.perf_counter() - start)
        return {
            f"{self._name}_mib": _mib(self._hf),
            f"transformers_{self._name}_tokens_per_second": self._speed(seconds),
        }

    def engine(self, run: str, repeats: int) -> Figures:
        """Size, speed and equal tokens in an engine; nothing where it is not there."""
        engine, form, weights = RUNS[run]
        figures = dict.fromkeys(("mib", "tokens_per_second", "equal"))
        reason = why_missing(engine)
        if reason is not None:
            print(f"{run}: {reason}")
            return self._named(run, figures)
        choice = choose_for(self._loaded, self._candidate, engine, form)
        print(choice.reason)
        target = materialize(
            self._loaded,
            self._library,
            self._candidate,
            self._folder / run,
            format=choice.name,
            weights=weights,
        )
        found = generate(
            engine,
            target,
            self._prompts,
            new_tokens=self._new,
            threads=torch.get_num_threads(),
            repeats=repeats,
        )
        figures = {
            "mib": _mib(target),
            "tokens_per_second": self._speed(found.seconds),
            "equal": self._equal(run, found.tokens),
        }
        return self._named(run, figures)

    def _named(self, run: str, figures: Mapping[str, Figure]) -> Figures:
        return {f"{run}_{self._name}_{name}": value for name, value in figures.items()}

    def _equal(self, run: str, tokens: Sequence[Sequence[int]]) -> int:
        """Prompts after which an engine's tokens are transformers'; others are printed."""
        lines = [
            first_difference(self._model, prompt, ours, theirs)
            for prompt, ours, theirs in zip(self._prompts, self._tokens, tokens, strict=True)
        ]
        for line in filter(None, lines):
            print(f"{run} {self._name}: {line}")
        return sum(not line or line.startswith("close") for line in lines)

    def _speed(self, seconds: Sequence[float]) -> float:
        """New tokens per second."""
        return len(self._prompts) * self._new / statistics.median(seconds)

    def _continued(self) -> list[list[int]]:
        return [continued(self._model, prompt, self._new) for prompt in self._prompts]


def continued(model: PreTrainedModel, prompt: list[int], new: int) -> list[int]:
    """The new tokens by transformers' own generation, with its cache."""
    ids = torch.tensor([prompt])
    tokens = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return tokens[0, len(prompt) :].tolist()


def _mib(folder: Path) -> float:
    return read_record(folder).measured["weight_bytes"] / 2**20


if __name__ == "__main__":
    main()
