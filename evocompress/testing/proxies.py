"""Contract of a proxy: what every entry of `evocompress.proxies.PROXIES` must hold to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isclose

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evocompress.apply import LiveModel
from evocompress.config import ProxyConfig
from evocompress.models import LoadedModel
from evocompress.proxies import Proxy
from evocompress.types import DROP, Candidate, Evaluate, Result

ProxyFactory = Callable[[LiveModel, Sequence[Tensor], ProxyConfig], Proxy]


TokenReference = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""Values (S-1,) of a sequence: from what the dense model and the candidate give at its positions
(S, ...), its token ids (S,), and how many buckets there are."""


@dataclass(frozen=True)
class Reference:
    """A brute-force proxy.

    Attributes:
        values: Of one sequence.
        of_states: From the final hidden states, not the logits.
    """

    values: TokenReference
    of_states: bool = False


TOP_K = 20
TOLERANCE = 2e-5


def micro_batches(loaded: LoadedModel, *, seed: int = 0) -> list[Tensor]:
    """Three micro-batches of random tokens, the last one smaller."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary = loaded.model.config.vocab_size
    return [torch.randint(vocabulary, (b, 24), generator=generator) for b in (3, 3, 2)]


def dropped(loaded: LoadedModel, *names: str) -> Candidate:
    """The candidate without some sub-layers, named like ``1.mlp``."""
    path = loaded.family.layers_path
    return Candidate(tuple((f"{path}.{name}", DROP) for name in sorted(names)))


def reference_kl(dense: Tensor, logits: Tensor, ids: Tensor, top_k: int) -> Tensor:
    """KL in top-k buckets of each position, by sorting, in float64 (S-1,)."""
    return _kl(*_buckets(dense, logits, top_k))[:-1]


def reference_js(dense: Tensor, logits: Tensor, ids: Tensor, top_k: int) -> Tensor:
    """Jensen-Shannon divergence in the same buckets, in float64 (S-1,)."""
    p, q = _buckets(dense, logits, top_k)
    return ((_kl(p, (p + q) / 2) + _kl(q, (p + q) / 2)) / 2)[:-1]


def reference_cosine(dense: Tensor, states: Tensor, ids: Tensor, top_k: int) -> Tensor:
    """One minus the cosine of the final hidden states, in float64 (S-1,)."""
    one, other = dense.double()[:-1], states.double()[:-1]
    norms = (one.square().sum(-1) * other.square().sum(-1)).sqrt()
    return 1 - (one * other).sum(-1) / norms


def reference_loss(dense: Tensor, logits: Tensor, ids: Tensor, top_k: int) -> Tensor:
    """Negative log-likelihood of each next token, in float64 (S-1,)."""
    return -logits.double().log_softmax(-1)[:-1].gather(-1, ids[1:, None])[:, 0]


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
    factory: ProxyFactory, reference: Reference, loaded: LoadedModel, top_k: int = TOP_K
) -> None:
    """Every per-sequence value is the brute-force one, from plain forward passes."""
    batches = micro_batches(loaded)
    candidate = dropped(loaded, "0.mlp", "2.attention")
    with LiveModel(loaded) as live:
        proxy = factory(live, batches, ProxyConfig(top_k=top_k))
        [result] = proxy.evaluate([Evaluate(candidate, (2, 0))])
        live.restore()
        dense = [_outputs(loaded.model, ids, reference.of_states) for ids in batches]
        live.apply(candidate)
        changed = [_outputs(loaded.model, ids, reference.of_states) for ids in batches]
    assert [value.micro_batch for value in result.values] == [2, 0]
    for value in result.values:
        ids = batches[value.micro_batch]
        assert value.counts == (ids.shape[1] - 1,) * len(ids)
        rows = zip(dense[value.micro_batch], changed[value.micro_batch], ids, strict=True)
        expected = [float(reference.values(*row, top_k).sum()) for row in rows]
        torch.testing.assert_close(list(value.sums), expected, rtol=TOLERANCE, atol=TOLERANCE)


def check_company_does_not_matter(factory: ProxyFactory, loaded: LoadedModel) -> None:
    """A value depends neither on other requests, nor on their order, nor on the model's state."""
    batches = micro_batches(loaded)
    one, other = dropped(loaded, "0.mlp"), dropped(loaded, "1.attention", "2.mlp")
    requests = [Evaluate(one, (0, 1)), Evaluate(other, (1, 2)), Evaluate(one, (2,))]
    with LiveModel(loaded) as live:
        together = factory(live, batches, ProxyConfig()).evaluate(requests)
        alone = factory(live, batches, ProxyConfig())
        separately = [alone.evaluate([request])[0] for request in reversed(requests)]
        streamed = list(factory(live, batches, ProxyConfig()).stream(requests))
    assert together == separately[::-1]
    assert len(streamed) == len(requests) and all(result in together for result in streamed)


def check_stops_when_hopeless(factory: ProxyFactory, loaded: LoadedModel) -> None:
    """A censored result has fewer values and no mean; a threshold that is met changes nothing."""
    candidate = dropped(loaded, "0.attention", "0.mlp")
    with LiveModel(loaded) as live:
        proxy = factory(live, micro_batches(loaded), ProxyConfig())
        [full] = proxy.evaluate([Evaluate(candidate, (0, 1, 2))])
        above, below = (
            proxy.evaluate([Evaluate(candidate, (0, 1, 2), stop_above=full.mean * factor)])[0]
            for factor in (1.01, 0.01)
        )
    assert above.values == full.values and not above.censored
    assert below.values == full.values[:1] and below.censored
    assert below.mean == inf


def check_survives_bad_candidates(
    factory: ProxyFactory, loaded: LoadedModel, break_model: Callable[[], None]
) -> None:
    """A candidate that fails says why, and the next one is evaluated as if nothing had been.

    Args:
        factory: Makes the proxy.
        loaded: The model.
        break_model: Makes the next forward pass, and no other, fail or give NaN.
    """
    request = Evaluate(dropped(loaded, "1.mlp"), (0,))
    with LiveModel(loaded) as live:
        proxy = factory(live, micro_batches(loaded), ProxyConfig())
        [good] = proxy.evaluate([request])
        break_model()
        bad, after = proxy.evaluate([request, request])
    assert bad.failed and bad.mean == inf and bad.values == ()
    assert after == good


def check_dense_has_no_divergence(factory: ProxyFactory, loaded: LoadedModel) -> None:
    """The dense model diverges from itself by nothing, any other candidate by something."""
    results = _results(factory, loaded, [Candidate(), dropped(loaded, "0.mlp")])
    assert isclose(results[0].mean, 0.0, abs_tol=1e-6)
    assert results[1].mean > 1e-3


def check_more_buckets_never_lower(factory: ProxyFactory, loaded: LoadedModel) -> None:
    """Merging tokens into one bucket can only hide a divergence."""
    candidate = dropped(loaded, "1.attention", "1.mlp")
    means = [_results(factory, loaded, [candidate], k)[0].mean for k in (1, 4, 16, 64, 256, 999)]
    assert all(few <= many + 1e-6 for few, many in zip(means, means[1:], strict=False))
    assert means[0] < 0.9 * means[-1]
    assert isclose(means[-2], means[-1], rel_tol=1e-6)


def _results(
    factory: ProxyFactory, loaded: LoadedModel, candidates: Sequence[Candidate], top_k: int = TOP_K
) -> list[Result]:
    with LiveModel(loaded) as live:
        proxy = factory(live, micro_batches(loaded), ProxyConfig(top_k=top_k))
        return proxy.evaluate([Evaluate(candidate, (0, 1, 2)) for candidate in candidates])


@torch.inference_mode()
def _outputs(model: PreTrainedModel, ids: Tensor, of_states: bool) -> Tensor:
    """The logits or final hidden states of a plain forward pass."""
    outputs = model(ids, use_cache=False, output_hidden_states=True)
    given: Tensor = outputs.hidden_states[-1] if of_states else outputs.logits
    return given
