"""Questions of a searcher and their answers, as frozen data, and the pool that they are about.

Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass

from evocompress.core.types import Candidate

UNTREATED = "none"
"""The treatment of a candidate that is measured as the level library gives it."""


@dataclass(frozen=True)
class Evaluate:
    """Ask how good a candidate is on the given micro-batches.

    Attributes:
        candidate: What to evaluate.
        micro_batches: Indices into the calibration pool.
        treatment: `UNTREATED`, or the hash of a fine-tuning recipe and its tokens
            (`evocompress.core.finetuning`).
        stop_above: Mean value above which the evaluation may stop; the result is censored.
        probe: Outside the budget: counts tokens and can never win.
        tuning_tokens: Tokens that the treatment trains on.

    Examples:
        >>> Evaluate(Candidate(), micro_batches=(0, 1), tuning_tokens=100).training
        300
    """

    candidate: Candidate
    micro_batches: tuple[int, ...]
    treatment: str = UNTREATED
    stop_above: float | None = None
    probe: bool = False
    tuning_tokens: int = 0

    @property
    def training(self) -> int:
        """Tokens that the treatment counts for: a backward pass is two forward passes."""
        return 3 * self.tuning_tokens


@dataclass(frozen=True)
class Estimate:
    """Ask for a units x levels array of estimates at a candidate.

    Attributes:
        candidate: Where to estimate.
        kind: Which estimate, e.g. ``"block_influence"``.
        micro_batches: Indices into the calibration pool.
        forwards: How many forward passes over them it counts as; a backward pass is two.

    Examples:
        >>> Estimate(Candidate(), "block_influence", micro_batches=(0,)).forwards
        1
    """

    candidate: Candidate
    kind: str
    micro_batches: tuple[int, ...]
    forwards: int = 1


Request = Evaluate | Estimate


@dataclass(frozen=True)
class MicroBatchValue:
    """The proxy's value on one micro-batch.

    Attributes:
        micro_batch: Index into the calibration pool.
        sums: For each sequence, the sum of the value over its counted positions.
        counts: For each sequence, how many positions were counted.

    Examples:
        >>> MicroBatchValue(0, sums=(3.0, 1.0), counts=(31, 31)).sums
        (3.0, 1.0)
    """

    micro_batch: int
    sums: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Result:
    """The answer to an `Evaluate` request.

    Attributes:
        request: What was asked.
        values: One entry per evaluated micro-batch, in the order asked.
        failed: Why there is no value (NaN, out of memory, ...), or ``None``.
        censored: The evaluation stopped early at the request's ``stop_above``.

    Examples:
        >>> Result(Evaluate(Candidate(), (0,)), (MicroBatchValue(0, (3.0, 1.0), (2, 2)),)).mean
        1.0
    """

    request: Evaluate
    values: tuple[MicroBatchValue, ...]
    failed: str | None = None
    censored: bool = False

    @property
    def mean(self) -> float:
        """Mean over counted positions; infinity for a failed or censored result."""
        if self.failed is not None or self.censored:
            return float("inf")
        total = sum(sum(value.sums) for value in self.values)
        return total / sum(sum(value.counts) for value in self.values)


@dataclass(frozen=True)
class Estimation:
    """The answer to an `Estimate` request.

    Attributes:
        request: What was asked.
        units: The unit that each row is about.
        rows: For each unit its values; how many there are and what they mean is the kind's
            business (`evocompress.evaluation.estimates.ESTIMATES`).
        failed: Why there are no values, or ``None``.

    Examples:
        >>> asked = Estimate(Candidate(), "magnitude", (0,))
        >>> Estimation(asked, units=("layers.0",), rows=((0.5,),)).by_unit
        {'layers.0': (0.5,)}
    """

    request: Estimate
    units: tuple[str, ...]
    rows: tuple[tuple[float, ...], ...]
    failed: str | None = None

    @property
    def by_unit(self) -> dict[str, tuple[float, ...]]:
        """The rows by unit name."""
        return dict(zip(self.units, self.rows, strict=True))


Answer = Result | Estimation


@dataclass(frozen=True)
class Pool:
    """The calibration pool as a searcher sees it.

    Attributes:
        tokens: Tokens of each micro-batch (sequences x length).

    Examples:
        >>> Pool((64, 64, 32)).requested(Estimate(Candidate(), "magnitude", (0, 2), forwards=3))
        288
    """

    tokens: tuple[int, ...]

    def requested(self, request: Request) -> int:
        """Tokens that a request asks for, repeats and training included."""
        tokens = sum(self.tokens[index] for index in request.micro_batches)
        if isinstance(request, Estimate):
            return tokens * request.forwards
        return tokens + request.training
