"""Contract of a proxy: what every entry of `evocompress.proxies.PROXIES` must hold to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
Reference = Callable[[Tensor, Tensor, Tensor, int], Tensor]

TOP_K = 20
TOLERANCE = 2e-5


def micro_batches(loaded: LoadedModel, *, seed: int = 0) -> list[Tensor]:
    """Three micro-batches of random tokens, the last one smaller."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary = loaded.model.config.vocab_size
    return [torch.randint(vocabulary, (b, 24), generator=generator) for b in (3, 3, 2)]


def dropped(loaded: LoadedModel, *names: str) -> Candidate:
    """The candidate without some sub-layers, named like ``1.mlp``."""
    path = loaded.family.block_path()
    return Candidate(tuple((f"{path}.{name}", DROP) for name in sorted(names)))


def reference_kl(dense: Tensor, logits: Tensor, ids: Tensor, top_k: int) -> Tensor:
    """KL in top-k buckets of each position, by sorting, in float64 (S-1,)."""
    p, q = dense.double().softmax(-1), logits.double().softmax(-1)
    order = p.argsort(-1, descending=True)
    p, q = p.gather(-1, order), q.gather(-1, order)
    terms = (p * (p / q).log())[:, :top_k].sum(-1)
    rest_p, rest_q = p[:, top_k:].sum(-1), q[:, top_k:].sum(-1)
    tail = rest_p * (rest_p / rest_q).log() if top_k < p.shape[-1] else rest_p
    return (terms + tail)[:-1]


def reference_loss(dense: Tensor, logits: Tensor, ids: Tensor, top_k: int) -> Tensor:
    """Negative log-likelihood of each next token, in float64 (S-1,)."""
    return -logits.double().log_softmax(-1)[:-1].gather(-1, ids[1:, None])[:, 0]


REFERENCES: Mapping[str, Reference] = {"kl": reference_kl, "perplexity": reference_loss}


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
        dense = [_logits(loaded.model, ids) for ids in batches]
        live.apply(candidate)
        changed = [_logits(loaded.model, ids) for ids in batches]
    assert [value.micro_batch for value in result.values] == [2, 0]
    for value in result.values:
        ids = batches[value.micro_batch]
        assert value.counts == (ids.shape[1] - 1,) * len(ids)
        rows = zip(dense[value.micro_batch], changed[value.micro_batch], ids, strict=True)
        expected = [float(reference(*row, top_k).sum()) for row in rows]
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
    assert together == separately[::-1]


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
def _logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    logits: Tensor = model(ids, use_cache=False).logits
    return logits
