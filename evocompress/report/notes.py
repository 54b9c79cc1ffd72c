"""The sentences of a report: what was run, what came out, and how to read the numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from evocompress.core.circumstances import Environment, change_notes, environment_notes
from evocompress.core.config import SparsitySpace
from evocompress.pipeline.winner import change_of_order, not_compared_text
from evocompress.report.allocation import UnitGrid
from evocompress.report.columns import RATIOS, UNTOLD, interval, number, percent
from evocompress.report.data import (
    Evaluation,
    Heldout,
    RatioRecord,
    Row,
    RunData,
    budget_of,
)
from evocompress.report.latencies import sequence_tokens, timing_notes
from evocompress.report.measures import contradictions, other_candidates
from evocompress.report.tables import table_notes
from evocompress.space.costs import COSTS, amount_text

COST_NAMES = {
    "params": "parameters",
    "body_params": "parameters in blocks",
    "nonzeros": "non-zero parameters",
    "body_nonzeros": "non-zero parameters in blocks",
    "matrix_nonzeros": "non-zero weights of matrices",
    "flops": "FLOPs of a prefill",
    "decode_flops": "FLOPs of a decoded token",
    "weight_bytes": "weight bytes",
    "kv_bytes": "KV-cache bytes",
    "memory": "memory",
    "latency": "latency of a prefill",
    "decode_latency": "latency of a decoded token",
}
COUNTED_WITH = {
    "body_params": "params",
    "body_nonzeros": "nonzeros",
    "matrix_nonzeros": "nonzeros",
}
"""For costs of the blocks alone, what is counted in the comparison's whole models."""

WRITTEN_BY_MODEL = "text that the dense model wrote itself"
MAIN_VERSIONS = ("evocompress", "python", "torch", "transformers", "numpy")


@dataclass(frozen=True)
class Headline:
    """A figure worth seeing first."""

    title: str
    value: str
    note: str


def cost_name(name: str) -> str:
    """A cost in words."""
    return COST_NAMES.get(name, name.replace("_", " "))


def budget_text(budget: Mapping[str, float]) -> str:
    """Bounds in words; a bound of at most 1 is a share of the dense model."""
    bounds = (
        f"{cost_name(name)} ≤ "
        + (f"{percent(bound)} of dense" if bound <= 1 else amount_text(name, bound))
        for name, bound in budget.items()
    )
    return ", ".join(bounds) or "none"


def heldout_text(heldout: Heldout) -> str:
    """Which text the held-out numbers are about."""
    source = WRITTEN_BY_MODEL if heldout.self_written else heldout.source
    return (
        f"Held-out: {heldout.sequences} sequences of {heldout.length} tokens from {source}"
        f"{_opening_text(heldout.opening)}."
    )


def _opening_text(opening: str) -> str:
    return f", each beginning with {opening}" if opening else ""


def facts(run: RunData) -> dict[str, str]:
    """What was run, where and when: the head of the report."""
    config = run.config
    result = {
        "Model": config.model.source,
        "Budget": budget_text(budget_of(run)),
        "May be changed": _space_text(run),
        "Searcher": config.search.name,
        "Tokens": _token_text(run),
        "Candidates": number(run.history.candidates, 0),
        "Calibration": f"{config.calibration.search_sequences} sequences of "
        f"{sequence_tokens(run) or config.calibration.length} tokens "
        f"from {_source_text(config.calibration.source)}{_opening_text(run.opening)}",
        "Seed": str(config.seed),
    }
    if course := _course_text(run):
        result["Course of the search"] = course
    return result | (environment_facts(run.environment) if run.environment else {})


def headlines(evaluation: Evaluation, costs: Sequence[str]) -> list[Headline]:
    """The few figures that say whether the search was worth it; first one of the costs."""
    dense, uniform, searched, healed = (
        evaluation.row(name) for name in ("dense", "uniform", "searched", "healed")
    )
    if searched is None:
        return []
    result = list(_cost_headline(searched, dense, costs)) if dense else []
    if searched.kl is not None:
        note = _against("uniform", searched.kl, uniform.kl if uniform else None)
        result.append(Headline("Held-out KL", number(searched.kl, 3), note))
    if healed and healed.kl is not None:
        note = _against("before", healed.kl, searched.kl)
        result.append(Headline("Held-out KL, healed", number(healed.kl, 3), note))
    best = healed or searched
    if best.perplexity is not None and dense:
        note = f"dense {number(dense.perplexity, 2)}"
        result.append(Headline("Perplexity", number(best.perplexity, 2), note))
    if best.accuracy is not None and dense:
        note = f"dense {percent(dense.accuracy or 0)}"
        result.append(Headline("Accuracy", percent(best.accuracy), note))
    if best.spearman is not None:
        note = "rank correlation with the dense model's"
        result.append(Headline("Similarities", number(best.spearman, 4), note))
    return result


def _cost_headline(searched: Row, dense: Row, costs: Sequence[str]) -> Iterator[Headline]:
    """The share of the first cost that is known of both models; measured rather than predicted."""
    for name in (*costs, "nonzeros"):
        cost = COUNTED_WITH.get(name, name)
        if cost in RATIOS and (ratio := getattr(searched, RATIOS[cost])) is not None:
            yield _latency_headline(cost, ratio)
            return
        for amount, how in ((_measured, ""), (_predicted, ", predicted")):
            part, whole = amount(searched, cost), amount(dense, cost)
            if part is not None and whole:
                note = f"of the dense model{how}"
                yield Headline(cost_title(cost), percent(part / whole), note)
                return


def _latency_headline(cost: str, ratio: RatioRecord) -> Headline:
    """A measured share of the dense model's latency."""
    known = "of the dense model" if ratio.told_apart else f"{UNTOLD} from the dense model"
    return Headline(cost_title(cost), percent(ratio.mean), f"{known} ({interval(ratio)})")


def cost_title(cost: str) -> str:
    """A cost in words, as a heading."""
    name = cost_name(cost)
    return name[0].upper() + name[1:]


def _measured(row: Row, cost: str) -> float | None:
    """The counted costs of a model."""
    return getattr(row, cost) if cost in Row.model_fields else None


def _predicted(row: Row, cost: str) -> float | None:
    """The costs that the cost model predicts for a model."""
    return (row.predicted or {}).get(cost)


def allocation_text(cells: UnitGrid | None) -> str:
    """The extremes of the allocation in a sentence or two."""
    if cells is None:
        return ""
    left = [cell for cell in cells.present if not cell.level.drop]
    dropped = len(cells.present) - len(left)
    parts = [f"{dropped} of {len(cells.present)} units are dropped."] if dropped else []
    narrow = [cell for cell in left if cell.width and cell.kept is not None]
    if narrow:
        low, high = (each(narrow, key=lambda cell: cell.kept or 0.0) for each in (min, max))
        parts.append(
            f"{len(narrow)} sub-layers are narrowed, {low.unit} the most ({low.width}) and "
            f"{high.unit} the least ({high.width})."
            if len(narrow) > 1
            else f"One sub-layer is narrowed, {low.unit} ({low.width})."
        )
    sparse = [cell for cell in left if cell.kept is None and not cell.width]
    if any(cell.zeros for cell in sparse):
        least, most = (each(sparse, key=lambda cell: cell.zeros) for each in (min, max))
        parts.append(
            f"Zeros go from {percent(least.zeros)} in {least.unit} "
            f"to {percent(most.zeros)} in {most.unit}."
        )
    elif not narrow:
        parts.append("The others are dense.")
    return " ".join(parts)


def front_text(run: RunData, costs: Sequence[str]) -> str:
    """The number of candidates on and behind the front of `costs`, and its hypervolume."""
    best = sum(point.non_dominated for point in run.front)
    positions = sorted({point.tokens for point in run.front})
    text = (
        f"{number(len(run.front), 0)} candidates that were measured on the same "
        f"{number(positions[0], 0)} positions as the winner, by "
        f"{' and by '.join(map(cost_name, costs))}. {best} are on the front: none of the others is "
        "as good in value and in every cost that was weighed, and better in one."
    )
    if len(positions) > 1:
        text += (
            f" An older version measured some of them on up to {number(positions[-1], 0)}: their "
            "values are of other texts and do not compare well."
        )
    if run.winner and run.winner.not_compared:
        text += f" {not_compared_text(run.winner.not_compared)}."
    front = run.winner.front if run.winner else None
    if front is not None:
        costs = " and ".join(cost_name(name) for name in front.axes)
        text += (
            f" Its hypervolume is {number(front.hypervolume, 4)}, with {costs} as shares of the "
            "dense model's, up to a value of "
            f"{number(front.reference['value'], 4)} and the dense model's costs. The cross is "
            "the knee, the best balanced candidate."
        )
    return text + " Click a point, or choose it in the list, to see its layers."


def notes(run: RunData) -> list[str]:
    """Notes without which a reader may be misled by the numbers."""
    result = list(_evaluation_notes(run.evaluation)) if run.evaluation else []
    if run.evaluation:
        result += contradictions(run.evaluation, run.config.proxy.kind)
    result += other_candidates(run)
    result += _winner_notes(run)
    result += timing_notes(run)
    if run.environment:
        evaluated = run.evaluation.environment if run.evaluation else None
        result += environment_notes(run.environment, evaluated)
    if run.healing_summary and run.healing_summary.circumstances:
        result += change_notes(run.healing_summary.circumstances, "healing")
    for reason, count in Counter(run.history.failures).most_common():
        result.append(f"Failed evaluations, left out: {count} × {reason}.")
    return result


def _evaluation_notes(evaluation: Evaluation) -> Iterator[str]:
    heldout = evaluation.heldout
    yield (heldout_text(heldout) + f" {_seen_text(heldout)} " + _measure_text(evaluation))
    if any(row.flops for row in evaluation.rows):
        yield (
            f"FLOPs: {COSTS['flops']}; counted by torch on each model. "
            f"Weights: {COSTS['weight_bytes']}."
        )
    yield from table_notes(evaluation)
    if heldout.self_written:
        yield (
            "The perplexity is of text that the dense model wrote itself: it is lower than on "
            "text by people and only compares the rows of this table, not with published values."
        )


def _seen_text(heldout: Heldout) -> str:
    """Whether the held-out text is news to library and search."""
    if not heldout.repeated:
        return "Neither the level library nor the search saw them."
    return (
        "Neither the level library nor the search saw these sequences, but "
        f"{number(heldout.repeated, 0)} of their {number(heldout.sequences * heldout.length, 0)} "
        "tokens are in runs of at least 16 that are in what was seen as well: as far as that, the "
        "values flatter."
    )


def _measure_text(evaluation: Evaluation) -> str:
    """The data that the quality was measured on."""
    if any(row.score_error is not None for row in evaluation.rows):
        return (
            "The score error is the root of the mean squared difference to the dense model's "
            "scores; Spearman's correlation is with the dense model's scores."
        )
    if any(row.distance is not None for row in evaluation.rows):
        return (
            "The embedding distance is one minus the cosine to the dense model's embedding; "
            "Spearman's correlation is that of all pairwise similarities with the dense model's."
        )
    over = "vocabulary in float32"
    if any(row.agreement is not None for row in evaluation.rows):
        over = "set of classes in float64"
    return (
        f"KL is to the dense model, over the full {over}; ± is the standard deviation over the "
        "sequences, not the error of the mean."
    )


def _winner_notes(run: RunData) -> Iterator[str]:
    if run.winner is None:
        return
    if run.winner.value is not None:
        yield (
            f"The winner's value in the search, {number(run.winner.value, 4)}, is on calibration "
            "tokens by which it was chosen, so it flatters; judge by the held-out values."
        )
    if run.winner.healed_last:
        yield (
            f"{change_of_order(run.winner.healed_last)} Each was healed with the same text, and "
            "judged on sequences that neither library, search, held-out part nor training has; "
            "they chose the winner, so they flatter it."
        )
        for row in run.winner.healed_last:
            if row.reason:
                yield f"Candidate {row.id} was not healed, so it could not win: {row.reason}."
    patterns = {level.pattern for level in run.winner.by_name().values() if level.zeros}
    if "" in patterns:
        yield (
            "Unstructured zeros give no speed-up and no smaller file where tensors are stored and "
            "multiplied densely, as they are here; they pay off in sparse formats and kernels."
        )
    for pattern in sorted(patterns - {""}):
        yield (
            f"{pattern} zeros are only faster with kernels made for them; "
            "the timed models are multiplied densely."
        )


def _source_text(source: str) -> str:
    return WRITTEN_BY_MODEL if source == "self" else source


def _space_text(run: RunData) -> str:
    space = run.config.space
    parts = []
    if space.sparsity:
        parts.append(f"{_zeros_text(space.sparsity)} ({run.config.library.criterion})")
    if space.width:
        tied = ", the same in every layer" if space.width.uniform else ""
        parts.append(
            f"width of {' and '.join(space.width.units)}{tied} "
            f"({run.config.library.width_criterion})"
        )
    if space.drop:
        parts.append(f"dropping {' and '.join(space.drop.units)}")
    return "; ".join(parts) or "nothing"


def _zeros_text(sparsity: SparsitySpace) -> str:
    """Which zeros matrices may have; a pattern has no levels but its own."""
    zeros = f"{sparsity.pattern} zeros" if sparsity.pattern else "zeros"
    around = f" ± {sparsity.levels} levels" if sparsity.levels and not sparsity.pattern else ""
    return f"{zeros} in matrices, {percent(sparsity.target)}{around}"


def _token_text(run: RunData) -> str:
    if not run.history.steps:
        return "none yet"
    last = run.history.steps[-1]
    asked = run.config.search.tokens
    limit = f" of {number(asked, 0)}" if asked else ""
    return f"{number(last.requested, 0)}{limit} requested, {number(last.computed, 0)} computed"


def _course_text(run: RunData) -> str:
    """What the searcher said that it was doing, each with the tokens that were spent by its end."""
    spent: dict[str, int] = {}
    for step in run.history.steps:
        if step.phase:
            spent[step.phase] = step.requested
    return "; ".join(f"{phase} (by {number(tokens, 0)} tokens)" for phase, tokens in spent.items())


def environment_facts(environment: Environment) -> dict[str, str]:
    """When, on what and with which versions a run was started; what is not known is left out."""
    names = [name for name in MAIN_VERSIONS if name in environment.versions]
    result = {
        "Started": environment.started.replace("T", " ")[:16],
        "Machine": _machine_text(environment),
        "Versions": ", ".join(f"{name} {environment.versions[name]}" for name in names),
        "Commit": environment.git or "",
    }
    return {name: text for name, text in result.items() if text}


def _machine_text(environment: Environment) -> str:
    threads = f"{environment.threads} threads" if environment.threads else ""
    parts = (environment.device, environment.dtype, threads, environment.platform)
    return ", ".join(part for part in parts if part)


def _against(name: str, value: float, other: float | None) -> str:
    """``uniform 0.4587, 24 % less`` or the like."""
    if not other:
        return ""
    change = value / other - 1
    word = "less" if change < 0 else "more"
    return f"{name} {number(other, 3)}: {percent(round(abs(change), 2))} {word}"
