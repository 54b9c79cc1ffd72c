"""What values are of, and where the measures of the comparison contradict each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from evocompress.evaluation.proxies import meaning_of
from evocompress.report.columns import number
from evocompress.report.data import Evaluation, Row, RunData


@dataclass(frozen=True)
class QualityMeasure:
    """A measure of quality in the comparison.

    Attributes:
        key: The field of a row.
        name: In words.
        rising: Whether more is better.
    """

    key: str
    name: str
    rising: bool = False

    def of(self, row: Row) -> float | None:
        """What it is for a model."""
        value: float | None = getattr(row, self.key)
        return value


MEASURES = (
    QualityMeasure("kl", "KL"),
    QualityMeasure("perplexity", "perplexity"),
    QualityMeasure("accuracy", "accuracy", rising=True),
    QualityMeasure("distance", "embedding distance"),
    QualityMeasure("spearman", "rank correlation of similarities", rising=True),
    QualityMeasure("score_error", "error of scores"),
    QualityMeasure("score_spearman", "rank correlation of scores", rising=True),
)


def contradictions(evaluation: Evaluation, proxy: str) -> Iterator[str]:
    """A sentence for every two models that two measures rank differently, then one on the proxy."""
    found = [
        text
        for first, second in combinations(evaluation.rows, 2)
        if first.name != "dense" and (text := _contradiction(second, first))
    ]
    yield from found
    if found:
        value = meaning_of(proxy).partition(",")[0]
        yield f"Where measures contradict each other: the search chose by the {value}."


def _contradiction(row: Row, other: Row) -> str:
    """By what a model is better than another, and by what worse; empty where all agree."""
    better: list[str] = []
    worse: list[str] = []
    for measure in MEASURES:
        one, two = measure.of(row), measure.of(other)
        if one is None or two is None or one == two:
            continue
        text = f"{measure.name} ({number(one, 3)} against {number(two, 3)})"
        (better if (one > two) == measure.rising else worse).append(text)
    if not (better and worse):
        return ""
    return (
        f"Measures disagree: {row.name} is better than {other.name} by {' and '.join(better)}, "
        f"but worse by {' and '.join(worse)}."
    )


def other_candidates(run: RunData) -> Iterator[str]:
    """That what was compared or healed is not the winner, where it is another candidate."""
    compared = run.evaluation.candidate if run.evaluation else None
    healed = run.healed if run.healing else None
    for what, found in (("comparison", compared), ("healing", healed)):
        if run.winner and found not in (None, run.winner.id):
            yield (
                f"The {what} is of candidate {found}, not of the winner {run.winner.id}. If that "
                "is not meant, remove the checkpoint, write that of the winner with 'evocompress "
                "materialize', and heal and evaluate it."
            )
