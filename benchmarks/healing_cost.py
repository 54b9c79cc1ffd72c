"""What a step of healing costs beside the bare training step that it contains.

The bare step is written down plainly: forward passes of teacher and student, KL of the full
logits, backward pass, AdamW. Both train the same model, SmolLM2-135M against itself with half of
its zeros, and take turns, one step each on the same tokens, teacher run anew in both.

Figures: `healing_s` and `bare_s`, medians; `ratio`, the median of the ratios of the same turn
(aim: at most 1.15), with `ratio_low` and `ratio_high`, a 95% bootstrap interval.

    BENCHMARK_CLOCK=cpu OMP_NUM_THREADS=1 python benchmarks/healing_cost.py --json cost.json

``--quick`` takes a tiny random model.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from common import Figure, emit, interleaved
from torch import Tensor
from torch.nn.functional import kl_div

from evocompress.core.config import HealConfig
from evocompress.healing.distillation import Distillation
from evocompress.healing.masters import Masters
from evocompress.healing.optimizers import BETAS
from evocompress.healing.schedule import learning_rate
from evocompress.healing.trained import prepare_training
from evocompress.models.loading import LoadedModel, load

BATCH = 2


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence")
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--quick", action="store_true", help="a tiny random model")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        teacher = _teacher(Path(folder), arguments.quick)
        repeats, length = (3, 32) if arguments.quick else (arguments.repeats, arguments.length)
        emit("healing_cost", _figures(teacher, repeats, length), arguments.json)


def _teacher(folder: Path, quick: bool) -> LoadedModel:
    """The dense model in float32."""
    from evocompress.testing.tiny import tiny_checkpoint

    source = str(tiny_checkpoint(folder / "model", "llama")) if quick else "demo:smollm2-135m"
    return load(source, dtype="float32")


def _figures(teacher: LoadedModel, repeats: int, length: int) -> dict[str, Figure]:
    vocabulary = teacher.model.config.vocab_size
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, vocabulary, (BATCH, length), generator=generator)
    steps = {"healing": _healing(teacher, tokens), "bare": _bare(teacher, tokens)}
    seconds = interleaved(steps, repeats)
    ratios = np.array(seconds["healing"]) / np.array(seconds["bare"])
    draws = np.random.default_rng(0).choice(ratios, (2000, repeats))
    low, high = np.quantile(np.median(draws, axis=1), (0.025, 0.975))
    return {
        "healing_s": float(np.median(seconds["healing"])),
        "bare_s": float(np.median(seconds["bare"])),
        "ratio": float(np.median(ratios)),
        "ratio_low": float(low),
        "ratio_high": float(high),
    }


def _student(teacher: LoadedModel) -> torch.nn.Module:
    """A copy in which every second weight of the blocks' matrices is zero."""
    student = deepcopy(teacher.model)
    for name in (unit.name for unit in teacher.family.units(student) if unit.kind == "matrix"):
        student.get_submodule(name).weight.data.view(-1)[::2] = 0
    return student


def _healing(teacher: LoadedModel, tokens: Tensor) -> Callable[[], None]:
    """A step as healing takes it."""
    config = HealConfig(steps=100, batch=BATCH, accumulate=1)
    student = _student(teacher)
    distillation = Distillation(student, teacher, tokens, BATCH, again=False, family=teacher.family)
    masters = Masters(student, prepare_training(student, teacher.family, config), config)

    def step() -> None:
        distillation.backward(0, 1 / distillation.positions(0))
        masters.collect_gradients()
        masters.clip_gradients()
        masters.step(learning_rate(10, config))

    return step


def _bare(teacher: LoadedModel, tokens: Tensor) -> Callable[[], None]:
    """The same by hand, without zeros that stay, clipping, masters or chunks of logits."""
    student = _student(teacher).requires_grad_(True)
    weights = list(student.parameters())
    optimizer = torch.optim.AdamW(weights, lr=3e-4, betas=BETAS, weight_decay=0.0, fused=True)

    def step() -> None:
        with torch.no_grad():
            wanted = teacher.model(tokens, use_cache=False).logits[:, :-1].log_softmax(-1)
        found = student(tokens, use_cache=False).logits[:, :-1].log_softmax(-1)
        positions = found.shape[0] * found.shape[1]
        loss = kl_div(found, wanted, reduction="sum", log_target=True) / positions
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    main()
