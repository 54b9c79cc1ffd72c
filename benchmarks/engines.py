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
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import Figure, emit
from transformers import PreTrainedModel

from evocompress.config import SpaceConfig
from evocompress.export import FORMATS, choose_for, materialize, read_record
from evocompress.export.reload import read_checkpoint
from evocompress.models import LoadedModel, load
from evocompress.space import build_space
from evocompress.testing.engines import divergence, generate, missing
from evocompress.testing.plain_library import PlainLibrary
from evocompress.testing.tiny import windowless
from evocompress.types import DROP, Candidate

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
    figures: Figures = {"model": loaded.source, "threads": torch.get_num_threads()}
    candidates = {"dense": Candidate(), "compressed": compressed(loaded)}
    with tempfile.TemporaryDirectory() as scratch:
        for case, candidate in candidates.items():
            folder = Path(scratch) / case
            figures |= measure(loaded, candidate, case, folder, prompts, new, repeats)
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
        candidate = space.candidate(space.random(rng))
        lost = [name.rsplit(".", 1) for name, level in candidate.levels if level == DROP]
        alone = {(block, kind) for block, kind in lost if sum(b == block for b, _ in lost) == 1}
        if {kind for _, kind in alone} == {"attention", "mlp"}:
            return candidate


def measure(
    loaded: LoadedModel,
    candidate: Candidate,
    case: str,
    folder: Path,
    prompts: list[list[int]],
    new: int,
    repeats: int,
) -> Figures:
    """Everything about one candidate."""
    library = PlainLibrary(loaded)
    out = materialize(loaded, library, candidate, folder / "hf")
    model = read_checkpoint(out, loaded.model)
    ours = [continued(model, prompt, new) for prompt in prompts]
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        for prompt in prompts:
            continued(model, prompt, new)
        seconds.append(time.perf_counter() - start)
    count = len(prompts) * new
    figures: Figures = {f"{case}_mib": _mib(out)}
    figures[f"transformers_{case}_tokens_per_second"] = count / statistics.median(seconds)
    for key, (engine, form, weights) in RUNS.items():
        reason = missing(engine)
        if reason is not None:
            print(f"{key}: {reason}")
            names = ("mib", "tokens_per_second", "equal")
            figures |= dict.fromkeys(f"{key}_{case}_{name}" for name in names)
            continue
        choice = choose_for(loaded, candidate, engine, form)
        print(choice.reason)
        target = folder / key
        materialize(loaded, library, candidate, target, format=choice.name, weights=weights)
        found = generate(
            engine,
            target,
            prompts,
            new_tokens=new,
            threads=torch.get_num_threads(),
            repeats=repeats,
        )
        lines = [
            divergence(model, prompt, a, b)
            for prompt, a, b in zip(prompts, ours, found.tokens, strict=True)
        ]
        for line in filter(None, lines):
            print(f"{key} {case}: {line}")
        figures[f"{key}_{case}_mib"] = _mib(target)
        figures[f"{key}_{case}_tokens_per_second"] = count / statistics.median(found.seconds)
        figures[f"{key}_{case}_equal"] = sum(not line or line.startswith("close") for line in lines)
    return figures


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
