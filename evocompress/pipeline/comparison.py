"""The final comparison: dense, uniform, searched and healed on held-out text, with latency."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from evocompress.core.config import EvaluateConfig
from evocompress.evaluation.heldout import (
    Latency,
    Timing,
    count,
    count_flops,
    heldout_quality,
    measure_latency,
    output_quality,
)
from evocompress.models.loading import LoadedModel

CAUSAL_MEASURES = {
    "kl": "kl",
    "kl_sd": "kl_sd",
    "kl_p99": "kl_p99",
    "kl_topk": "kl_top256",
    "perplexity": "perplexity",
}
"""What is told of a model's text, by its name in `Quality` and in evaluation.json."""


@dataclass(frozen=True)
class ComparedModel:
    """One row of the comparison.

    Attributes:
        model: The model as it is used.
        predicted: Its costs by the cost model.
        saved: Bytes that its matrices take less in their types than in the model's own.
    """

    model: PreTrainedModel
    predicted: Mapping[str, float]
    saved: int = 0


def compare(
    dense: LoadedModel,
    models_to_compare: Mapping[str, ComparedModel],
    heldout: Tensor,
    config: EvaluateConfig,
    *,
    batch: int,
    length: int,
    labels: Tensor | None = None,
) -> list[dict[str, Any]]:
    """The rows of evaluation.json, by the names of models; the dense one is the first.

    All are in memory at once, so that their latencies are measured in turns. The held-out data are
    token ids (M, S), or what else the models take, perhaps with their true classes (M,), and are
    run `batch` sequences at once; FLOPs are counted for a sequence of `length` tokens.
    """
    task = dense.family.task
    models = {name: compared.model for name, compared in models_to_compare.items()}
    found = qualities(dense, models, heldout, labels, batch)
    latencies: Mapping[str, Latency] = {}
    if config.latency:
        latencies = measure_latency(
            models,
            prefill=config.prefill,
            decode=config.decode,
            repeats=config.repeats,
            width=config.ratio_width,
            seconds=config.latency_seconds,
            task=task,
        )
    rows = []
    for name, compared in models_to_compare.items():
        counts = count(compared.model)
        rows.append(
            {
                "name": name,
                "params": counts.parameters,
                "nonzeros": counts.nonzeros,
                "flops": count_flops(compared.model, length, task),
                "weight_bytes": counts.parameters * dense.stored.itemsize - compared.saved,
                **found[name],
                "predicted": dict(compared.predicted),
                **_latency(latencies.get(name), config.decode[1]),
            }
        )
    return rows


def qualities(
    dense: LoadedModel,
    models: Mapping[str, PreTrainedModel],
    heldout: Tensor,
    labels: Tensor | None,
    batch: int,
) -> dict[str, dict[str, float | None]]:
    """How good each model is, by the names of evaluation.json."""
    task = dense.family.task
    if task.causal:
        found = heldout_quality(dense.model, models, heldout, batch=batch)
        measured: Mapping[str, Mapping[str, float | None]] = {
            name: {key: getattr(quality, own) for own, key in CAUSAL_MEASURES.items()}
            for name, quality in found.items()
        }
    else:
        measured = output_quality(task, dense.model, models, heldout, labels, batch=batch)
    # JSON knows no NaN, which there is where the logits of a model overflowed.
    return {
        name: {k: v if v is not None and isfinite(v) else None for k, v in of_model.items()}
        for name, of_model in measured.items()
    }


def _latency(latency: Latency | None, new_tokens: int) -> dict[str, Any]:
    if latency is None:
        return dict.fromkeys(("prefill_ms", "prefill_ratio", "decode_ms_per_token", "decode_ratio"))
    decode = latency.decode
    return {
        "prefill_ms": _milliseconds(latency.prefill, 1),
        "prefill_ratio": latency.prefill.ratio and asdict(latency.prefill.ratio),
        "decode_ms_per_token": decode and _milliseconds(decode, new_tokens),
        "decode_ratio": decode and decode.ratio and asdict(decode.ratio),
    }


def _milliseconds(timing: Timing, tokens: int) -> dict[str, float]:
    scale = 1000 / tokens
    return {
        "median": timing.median * scale,
        "low": timing.fastest * scale,
        "high": timing.slowest * scale,
    }
