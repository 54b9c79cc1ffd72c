"""What a reader must know of the latencies of a report."""

from __future__ import annotations

from collections.abc import Iterator

from evocompress.report.columns import LATENCIES, RATIOS, UNTOLD
from evocompress.report.data import Evaluation, RunData


def timing_notes(run: RunData) -> Iterator[str]:
    """What the measured and the predicted latencies are of; nothing where there are none."""
    evaluation = run.evaluation
    if evaluation is None:
        return
    if not any(row.prefill_ms or row.decode_ms_per_token for row in evaluation.rows):
        return
    machine = evaluation.device or "an unnamed machine"
    text = f"Latency: median of repeated timings, lowest – highest below it, on {machine}."
    text += _ratio_text(evaluation)
    timed = evaluation.settings
    if timed is not None:
        batch, tokens = timed.prefill
        text += f" Prefill is {sequence_tokens(run) or tokens} tokens at batch {batch}"
        decoded = any(row.decode_ms_per_token for row in evaluation.rows)
        text += (
            f"; decode is {timed.decode[1]} new tokens after {timed.decode[0]}, at batch 1."
            if decoded
            else "."
        )
    if any(name in (row.predicted or {}) for row in evaluation.rows for name in LATENCIES):
        text += _prediction_text(run)
    yield text


def _ratio_text(evaluation: Evaluation) -> str:
    """What the shares of the dense model's latency are."""
    ratios = [getattr(row, name) for row in evaluation.rows for name in RATIOS.values()]
    turns = [ratio.turns for ratio in ratios if ratio is not None]
    if not turns:
        timed = evaluation.settings
        return (
            (f" Each was timed {timed.repeats} times." if timed else "")
            + " Shares of the dense model's latency are not given: the evaluation has no intervals "
            "of them; repeat it with 'evocompress evaluate'."
        )
    return (
        f" All models were timed in turns ({min(turns)} to {max(turns)}); the share of dense is "
        "the geometric mean over the turns, with Student's 95% interval of its logarithm below "
        f"it. Where that contains 100%, the two are {UNTOLD}: the difference may be chance."
    )


def _prediction_text(run: RunData) -> str:
    """For what latency was predicted; absolute times compare only where it is the same."""
    latency = run.config.latency
    batch, tokens = latency.prefill[0], sequence_tokens(run) or latency.prefill[1]
    text = f" Predicted latencies come from a table of {tokens} tokens at batch {batch}"
    if run.architecture is None or run.architecture.causal:
        decode_batch, context = latency.decode
        text += f", and of one token after {context} at batch {decode_batch}"
    return f"{text}; shares are of the prediction for the dense model."


def sequence_tokens(run: RunData) -> int:
    """Tokens of every sequence, where the model says how many, as of images; else 0."""
    return (run.architecture.tokens if run.architecture else None) or 0
