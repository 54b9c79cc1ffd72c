"""The final comparison: dense, uniform, searched and healed on held-out text, with latency."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from evocompress.config import EvaluateConfig
from evocompress.evaluation import (
    Latency,
    Timing,
    count,
    count_flops,
    heldout_quality,
    measure_latency,
)


@dataclass(frozen=True)
class Contestant:
    """One row of the comparison.

    Attributes:
        model: The model as it is used.
        predicted: Its costs by the cost model.
    """

    model: PreTrainedModel
    predicted: Mapping[str, float]


def compare(
    dense: PreTrainedModel,
    contestants: Mapping[str, Contestant],
    heldout: Tensor,
    config: EvaluateConfig,
    *,
    batch: int,
    length: int,
) -> list[dict[str, Any]]:
    """The rows of evaluation.json.

    Args:
        dense: The dense model, to which KL is measured.
        contestants: What is compared, by the name of its row; all in memory at once, so that
            their latencies are measured in turns.
        heldout: Token ids (M, S).
        config: What to measure.
        batch: Sequences of a forward pass.
        length: Tokens of the sequence for which FLOPs are counted.
    """
    models = {name: contestant.model for name, contestant in contestants.items()}
    qualities = heldout_quality(dense, models, heldout, batch=batch)
    latencies: Mapping[str, Latency] = {}
    if config.latency:
        latencies = measure_latency(
            models, prefill=config.prefill, decode=config.decode, repeats=config.repeats
        )
    rows = []
    for name, contestant in contestants.items():
        counts, quality = count(contestant.model), qualities[name]
        rows.append(
            {
                "name": name,
                "params": counts.parameters,
                "nonzeros": counts.nonzeros,
                "flops": count_flops(contestant.model, length),
                "weight_bytes": counts.weight_bytes,
                "kl": _finite(quality.kl),
                "kl_sd": _finite(quality.kl_sd),
                "kl_top256": _finite(quality.kl_topk),
                "perplexity": _finite(quality.perplexity),
                "predicted": dict(contestant.predicted),
                **_latency(latencies.get(name), config.decode[1]),
            }
        )
    return rows


def _finite(value: float) -> float | None:
    """The value, or ``None`` where the model's logits overflowed: JSON knows no NaN."""
    return value if isfinite(value) else None


def _latency(latency: Latency | None, new_tokens: int) -> dict[str, Any]:
    if latency is None:
        return {"prefill_ms": None, "decode_ms_per_token": None}
    return {
        "prefill_ms": _milliseconds(latency.prefill, 1),
        "decode_ms_per_token": _milliseconds(latency.decode, new_tokens),
    }


def _milliseconds(timing: Timing, tokens: int) -> dict[str, float]:
    scale = 1000 / tokens
    return {
        "median": timing.median * scale,
        "low": timing.fastest * scale,
        "high": timing.slowest * scale,
    }
