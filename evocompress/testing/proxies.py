"""Contract of a proxy: what every entry of `PROXIES` must hold to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isclose

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evocompress.compression.live_model import LiveModel
from evocompress.core.config import ProxyConfig
from evocompress.core.requests import Evaluate, Result
from evocompress.core.types import DROP, Candidate
from evocompress.evaluation.proxies.base import Metric, Proxy
from evocompress.evaluation.proxies.evaluator import MetricProxy
from evocompress.models.dummy_inputs import random_batch
from evocompress.models.loading import LoadedModel
from evocompress.models.tasks import Task

RowReference = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""Values (R,) of a sequence: from what the dense model and the candidate give at its counted
positions (R, ...), the sequence itself, and how many buckets there are."""


@dataclass(frozen=True)
class Reference:
    """A brute-force proxy.

    Attributes:
        values: Of one sequence.
        of_states: From the final hidden states, not the logits.

    Examples:
        >>> Reference(reference_cosine, of_states=True).of_states
        True
    """

    values: RowReference
    of_states: bool = False


TOP_K = 20
TOLERANCE = 2e-5


def micro_batches(loaded: LoadedModel, *, seed: int = 0) -> list[Tensor]:
    """Three micro-batches of random tokens or images, the last one smaller."""
    batch = random_batch(loaded.family.task, loaded.model, 14, 24, seed)
    return list(torch.split(batch, 5))


def _proxy(
    metric: type[Metric], live: LiveModel, batches: Sequence[Tensor], config: ProxyConfig
) -> Proxy:
    return MetricProxy(live, batches, metric(live.loaded, config))


def dropped(loaded: LoadedModel, *names: str) -> Candidate:
    """The candidate without some sub-layers, named like ``1.mlp``."""
    path = loaded.family.layers_path
    return Candidate(tuple((f"{path}.{name}", DROP) for name in sorted(names)))


def reference_kl(dense: Tensor, logits: Tensor, ids: Tensor, top_k: int) -> Tensor:
    """KL in top-k buckets of each position, by sorting, in float64 (R,)."""
    return _kl(*_buckets(dense, logits, top_k))


def reference_js(dense: Tensor, logits: Tensor, ids: Tensor, top_k: int) -> Tensor:
    """Jensen-Shannon divergence in the same buckets, in float64 (R,)."""
    p, q = _buckets(dense, logits, top_k)
    return (_kl(p, (p + q) / 2) + _kl(q, (p + q) / 2)) / 2


def reference_cosine(dense: Tensor, states: Tensor, ids: Tensor, top_k: int) -> Tensor:
    """One minus the cosine of the final hidden states, in float64 (R,)."""
    one, other = dense.double(), states.double()
    norms = (one.square().sum(-1) * other.square().sum(-1)).sqrt()
    return 1 - (one * other).sum(-1) / norms


def reference_loss(dense: Tensor, logits: Tensor, ids: Tensor, top_k: int) -> Tensor:
    """Negative log-likelihood of each next token, in float64 (R,)."""
    return -logits.double().log_softmax(-1).gather(-1, ids[1:, None])[:, 0]


REFERENCES: Mapping[str, Reference] = {
    "kl": Reference(reference_kl),
    "perplexity": Reference(reference_loss),
    "js": Reference(reference_js),
    "cosine": Reference(reference_cosine, of_states=True),
}


def _buckets(dense: Tensor, logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Both models' probabilities of the dense one's k likeliest tokens and of the rest."""
    p, q = dense.double().softmax(-1), logits.double().softmax(-1)
    order = p.argsort(-1, descending=True)
    return _merged(p.gather(-1, order), top_k), _merged(q.gather(-1, order), top_k)


def _merged(probabilities: Tensor, top_k: int) -> Tensor:
    rest = probabilities[:, top_k:].sum(-1, keepdim=True)
    return torch.cat([probabilities[:, :top_k], rest], dim=-1)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return torch.where(p > 0, p * (p / q).log(), 0).sum(-1)


def check_matches_reference(
    metric: type[Metric], reference: Reference, loaded: LoadedModel, top_k: int = TOP_K
) -> None:
    """Every per-sequence value is the brute-force one, from plain forward passes."""
    task, batches = loaded.family.task, micro_batches(loaded)
    candidate = dropped(loaded, "0.mlp", "2.attention")
    with LiveModel(loaded) as live:
        proxy = _proxy(metric, live, batches, ProxyConfig(top_k=top_k))
        [result] = proxy.evaluate([Evaluate(candidate, (2, 0))])
        live.restore()
        dense = [plain_outputs(task, loaded.model, ids, reference.of_states) for ids in batches]
        live.apply(candidate)
        changed = [plain_outputs(task, loaded.model, ids, reference.of_states) for ids in batches]
    assert [value.micro_batch for value in result.values] == [2, 0]
    for value in result.values:
        ids = batches[value.micro_batch]
        assert value.counts == (len(dense[value.micro_batch][0]),) * len(ids)
        rows = zip(dense[value.micro_batch], changed[value.micro_batch], ids, strict=True)
        expected = [float(reference.values(*row, top_k).sum()) for row in rows]
        torch.testing.assert_close(list(value.sums), expected, rtol=TOLERANCE, atol=TOLERANCE)


def check_company_does_not_matter(metric: type[Metric], loaded: LoadedModel) -> None:
    """A value depends neither on other requests, nor on their order, nor on the model's state."""
    batches = micro_batches(loaded)
    one, other = dropped(loaded, "0.mlp"), dropped(loaded, "1.attention", "2.mlp")
    requests = [Evaluate(one, (0, 1)), Evaluate(other, (1, 2)), Evaluate(one, (2,))]
    with LiveModel(loaded) as live:
        together = _proxy(metric, live, batches, ProxyConfig()).evaluate(requests)
        alone = _proxy(metric, live, batches, ProxyConfig())
        separately = [alone.evaluate([request])[0] for request in reversed(requests)]
        streamed = list(_proxy(metric, live, batches, ProxyConfig()).stream(requests))
    assert together == separately[::-1]
    assert len(streamed) == len(requests) and all(result in together for result in streamed)


def check_stops_when_hopeless(metric: type[Metric], loaded: LoadedModel) -> None:
    """A censored result has fewer values and no mean; a threshold that is met changes nothing."""
    candidate = dropped(loaded, "0.attention", "0.mlp")
    with LiveModel(loaded) as live:
        proxy = _proxy(metric, live, micro_batches(loaded), ProxyConfig())
        [full] = proxy.evaluate([Evaluate(candidate, (0, 1, 2))])
        above, below = (
            proxy.evaluate([Evaluate(candidate, (0, 1, 2), stop_above=full.mean * factor)])[0]
            for factor in (1.01, 0.01)
        )
    assert above.values == full.values and not above.censored
    assert below.values == full.values[:1] and below.censored
    assert below.mean == inf


def check_survives_bad_candidates(
    metric: type[Metric], loaded: LoadedModel, break_model: Callable[[], None]
) -> None:
    """A candidate that fails says why, and the next one is evaluated as if nothing had been.

    `break_model` makes the next forward pass, and no other, fail or give NaN.
    """
    request = Evaluate(dropped(loaded, "1.mlp"), (0,))
    with LiveModel(loaded) as live:
        proxy = _proxy(metric, live, micro_batches(loaded), ProxyConfig())
        [good] = proxy.evaluate([request])
        break_model()
        bad, after = proxy.evaluate([request, request])
    assert bad.failed and bad.mean == inf and bad.values == ()
    assert after == good


def check_dense_has_no_divergence(metric: type[Metric], loaded: LoadedModel) -> None:
    """The dense model diverges from itself by nothing, any other candidate by something."""
    results = _results(metric, loaded, [Candidate(), dropped(loaded, "0.mlp")])
    assert isclose(results[0].mean, 0.0, abs_tol=1e-6)
    assert results[1].mean > 1e-3


def check_more_buckets_never_lower(metric: type[Metric], loaded: LoadedModel) -> None:
    """Merging tokens into one bucket can only hide a divergence."""
    candidate = dropped(loaded, "1.attention", "1.mlp")
    means = [_results(metric, loaded, [candidate], k)[0].mean for k in (1, 4, 16, 64, 256, 999)]
    assert all(few <= many + 1e-6 for few, many in zip(means, means[1:], strict=False))
    assert means[0] < 0.9 * means[-1]
    assert isclose(means[-2], means[-1], rel_tol=1e-6)


def _results(
    metric: type[Metric], loaded: LoadedModel, candidates: Sequence[Candidate], top_k: int = TOP_K
) -> list[Result]:
    with LiveModel(loaded) as live:
        proxy = _proxy(metric, live, micro_batches(loaded), ProxyConfig(top_k=top_k))
        return proxy.evaluate([Evaluate(candidate, (0, 1, 2)) for candidate in candidates])


@torch.inference_mode()
def plain_outputs(task: Task, model: PreTrainedModel, batch: Tensor, of_states: bool) -> Tensor:
    """The logits or final hidden states of a plain forward pass, at counted positions (B, R, V)."""
    outputs = model(**task.inputs(batch, model.dtype), output_hidden_states=True)
    given: Tensor = outputs.hidden_states[-1] if of_states else outputs.logits
    return given[:, :-1] if task.by_position else given[:, None]
