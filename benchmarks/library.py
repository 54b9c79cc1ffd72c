"""All sparsity levels of a matrix in one SparseGPT sweep, against one sweep for each level.

The opponent is SparseGPT (2301.00774) written plainly in torch, as EvoPress (2410.14649) runs it
for every level of its database: factor the Hessian, then prune column by column. Both get the
same Gram matrices, and choose masks by the same rule: an exact share of the zeros in each block
of 128 columns, equal scores by position.

The two compute in another order, so scores that differ by less than rounding may fall on either
side of the threshold. Rows are independent given their mask; the difference of the weights is
therefore taken over the rows on whose masks both agree, and the other rows are counted. The
difference over all rows is given as well.

``six_types_ratio`` compares six bit widths of a matrix in one GPTQ sweep with one, the
factorisation of the Hessian included; ``bits_library_ratio`` the same of a whole level library of
SmolLM2-135M, with its passes over ``--calibration``, and with ``--quick`` of a tiny model.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from common import Figure, emit, interleaved, median_ratio
from healing import quick_setup
from torch import Tensor

from evocompress import api
from evocompress.compression.criteria import CRITERIA, Statistics
from evocompress.compression.quantization.gptq import RoundingTask
from evocompress.compression.quantization.quantized import QuantizedMatrix, quantize_all
from evocompress.core.config import RunConfig
from evocompress.core.progress import Silent
from evocompress.core.storage import STORAGE
from evocompress.core.types import Level

BLOCK = 128
DAMPING = 0.01
LOWEST, HIGHEST = 0.25, 0.85
CHUNK = 4096
TYPES = tuple(f"w{bits}g64" for bits in (2, 3, 4, 5, 6, 8))


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        shapes: (out, in) of each matrix.
        levels: Sparsity levels of each.
        sequences, length: Calibration tokens.
        repeats: Timings of each method.
        libraries: Timings of each whole library.
    """

    shapes: tuple[tuple[int, int], ...]
    levels: int
    sequences: int
    length: int
    repeats: int
    libraries: int


FULL = Size(((1536, 576), (576, 1536)), 13, sequences=128, length=512, repeats=5, libraries=3)
QUICK = Size(((256, 192), (192, 256)), 5, sequences=16, length=128, repeats=3, libraries=1)


@dataclass(frozen=True)
class Case:
    """One matrix, the Gram matrix of its inputs and the wanted levels."""

    weight: Tensor
    gram: Tensor
    sequences: int
    levels: tuple[Level, ...]


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--calibration", help="text file for whole libraries; without, none")
    parser.add_argument("--quick", action="store_true", help="small matrices")
    arguments = parser.parse_args()
    size = QUICK if arguments.quick else FULL
    cases = [make_case(shape, size, seed) for seed, shape in enumerate(size.shapes)]
    figures = speed(cases, size.repeats) | types(cases, size.repeats) | difference(cases)
    if arguments.quick or arguments.calibration:
        with tempfile.TemporaryDirectory() as scratch:
            figures |= whole(Path(scratch), arguments.calibration, size.libraries)
    emit("library", figures, arguments.json)


def make_case(shape: tuple[int, int], size: Size, seed: int) -> Case:
    """A bfloat16 matrix and the statistics of inputs correlated as by a random mixing."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = shape
    weight = (torch.randn(rows, columns, generator=generator) * columns**-0.5).bfloat16()
    mixing = torch.eye(columns) + torch.randn(columns, columns, generator=generator) * columns**-0.5
    gram = torch.zeros(columns, columns)
    for begin in range(0, size.sequences * size.length, CHUNK):
        tokens = min(CHUNK, size.sequences * size.length - begin)
        inputs = (torch.randn(tokens, columns, generator=generator) @ mixing).bfloat16().float()
        gram.addmm_(inputs.T, inputs)
    steps = torch.linspace(LOWEST, HIGHEST, size.levels).tolist()
    levels = tuple(Level(zeros=int(weight.numel() * step)) for step in steps)
    return Case(weight, gram, size.sequences, levels)


def speed(cases: Sequence[Case], repeats: int) -> dict[str, Figure]:
    """Seconds for all matrices, and how many times faster one sweep is (median of turns)."""
    seconds = interleaved(
        {
            "one": lambda: [one_sweep(case) for case in cases],
            "each": lambda: [sweep_per_level(case) for case in cases],
        },
        repeats,
    )
    return {
        "levels": len(cases[0].levels),
        "one_sweep_seconds": statistics.median(seconds["one"]),
        "per_level_seconds": statistics.median(seconds["each"]),
        "vs_per_level_sweeps": median_ratio(seconds["each"], seconds["one"]),
    }


def types(cases: Sequence[Case], repeats: int) -> dict[str, Figure]:
    """Seconds for all matrices in one type and in six, and their ratio (median of turns)."""
    seconds = interleaved(
        {
            "one": lambda: [rounded(case, TYPES[:1]) for case in cases],
            "six": lambda: [rounded(case, TYPES) for case in cases],
        },
        repeats,
    )
    return {
        "one_type_seconds": statistics.median(seconds["one"]),
        "six_types_seconds": statistics.median(seconds["six"]),
        "six_types_ratio": median_ratio(seconds["six"], seconds["one"]),
    }


def whole(folder: Path, text: str | None, repeats: int) -> dict[str, Figure]:
    """Seconds of a level library with one type and with six, and their ratio (median of turns).

    Args:
        folder: Gets the libraries.
        text: The calibration text of SmolLM2-135M; ``None`` for a tiny random model.
        repeats: Timings of each.
    """
    if text is None:
        quick = quick_setup(folder)
        model, calibration = dict(quick.model), dict(quick.calibration)
        names: Sequence[str] = tuple(name.replace("g64", "g32") for name in TYPES)
    else:
        model, names = {"source": "demo:smollm2-135m"}, TYPES
        calibration = {"source": text, "library_sequences": 64, "length": 512, "micro_batch": 1}

    def build(types: Sequence[str]) -> None:
        settings = {
            "name": f"{len(types)}-types",
            "runs": str(folder / "runs"),
            "model": model,
            "calibration": calibration,
            "space": {"bits": {"types": list(types)}, "budget": {"params": 1.0}},
            "library": {"path": str(folder / "library")},
        }
        api.build_library(RunConfig.model_validate(settings), reporter=Silent())
        shutil.rmtree(folder / "library")

    seconds = interleaved({"one": lambda: build(names[:1]), "six": lambda: build(names)}, repeats)
    return {
        "bits_library_seconds": statistics.median(seconds["six"]),
        "bits_library_ratio": median_ratio(seconds["six"], seconds["one"]),
    }


def rounded(case: Case, names: Sequence[str]) -> list[QuantizedMatrix]:
    """A matrix in types, by GPTQ."""
    known = Statistics(case.gram, sequences=case.sequences, damping=DAMPING)
    tasks = [RoundingTask(case.weight.float(), STORAGE[name]) for name in names]
    return quantize_all(tasks, known, "gptq", torch.bfloat16)


def one_sweep(case: Case) -> list[Tensor]:
    """What is measured: the project's criterion with all levels in one pass."""
    statistics = Statistics(case.gram, sequences=case.sequences, damping=DAMPING)
    return CRITERIA["sparsegpt"].compress(case.weight, statistics, case.levels)


def sweep_per_level(case: Case) -> list[Tensor]:
    """The opponent: plain SparseGPT once for each level."""
    return [
        plain_sparsegpt(case.weight, case.gram, case.sequences, level.zeros)
        for level in case.levels
    ]


def plain_sparsegpt(dense: Tensor, gram: Tensor, sequences: int, zeros: int) -> Tensor:
    """SparseGPT from its formula."""
    return plain_sweep(dense, inverse_factor(gram * (2 / sequences)), zeros)


def plain_sweep(dense: Tensor, factor: Tensor, zeros: int) -> Tensor:
    """Its sweep, given the inverse Hessian's factor: column loop, lazy block updates."""
    weight = dense.to(torch.float32, copy=True)
    columns = weight.shape[1]
    for begin in range(0, columns, BLOCK):
        end = min(begin + BLOCK, columns)
        block, inner = weight[:, begin:end].clone(), factor[begin:end, begin:end]
        count = zeros * end // columns - zeros * begin // columns
        mask = smallest(block**2 / inner.diagonal() ** 2, count)
        errors = torch.zeros_like(block)
        for column in range(end - begin):
            kept = block[:, column].clone()
            kept[mask[:, column]] = 0
            error = (block[:, column] - kept) / inner[column, column]
            block[:, column:].addr_(error, inner[column, column:], alpha=-1)
            block[:, column] = kept
            errors[:, column] = error
        weight[:, begin:end] = block
        weight[:, end:].addmm_(errors, factor[begin:end, end:], alpha=-1)
    return weight


def inverse_factor(hessian: Tensor) -> Tensor:
    """Upper Cholesky factor of the inverse of a damped Hessian."""
    identity = torch.eye(len(hessian), device=hessian.device)
    damped = hessian + DAMPING * hessian.diagonal().mean() * identity
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def smallest(scores: Tensor, count: int) -> Tensor:
    """Mask of exactly `count` scores, equal ones by position."""
    flat = scores.flatten()
    threshold = flat.kthvalue(count).values
    mask = flat < threshold
    mask[(flat == threshold).nonzero()[: count - int(mask.sum()), 0]] = True
    return mask.view_as(scores)


def difference(cases: Sequence[Case]) -> Mapping[str, Figure]:
    """Largest ‖a − b‖ / ‖b‖ (Frobenius) over the levels of all matrices."""
    same_masks, all_rows, other_rows, rows = 0.0, 0.0, 0, 0
    for case in cases:
        for ours, plain in zip(one_sweep(case), sweep_per_level(case), strict=True):
            agree = ((ours == 0) == (plain == 0)).all(1)
            same_masks = max(same_masks, relative(ours[agree], plain[agree]))
            all_rows = max(all_rows, relative(ours, plain))
            other_rows += int((~agree).sum())
            rows += len(agree)
    return {
        "max_relative_difference": same_masks,
        "max_relative_difference_all_rows": all_rows,
        "rows_with_another_mask": other_rows,
        "rows": rows,
    }


def relative(values: Tensor, expected: Tensor) -> float:
    """‖values − expected‖ / ‖expected‖."""
    return float((values - expected).norm() / expected.norm())


if __name__ == "__main__":
    main()
