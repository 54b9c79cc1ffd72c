"""How far embeddings and the order of their similarities are from the dense model's."""

import pytest
import torch
from scipy.stats import pearsonr
from torch import Tensor

from evocompress.core.config import ProxyConfig
from evocompress.evaluation import proxies
from evocompress.models.embedding_distance import (
    disagreements,
    distances,
    own_distances,
    similarity_disorders,
)


def unit(*shape: int, seed: int = 0) -> Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=-1)


def test_disorder_is_one_minus_the_correlation_of_each_row() -> None:
    found, target = unit(6, 8, seed=1), unit(6, 8, seed=2)
    now, was = (found @ found.T).numpy(), (target @ target.T).numpy()
    expected = [
        1 - pearsonr([now[i, j] for j in others], [was[i, j] for j in others]).statistic
        for i in range(6)
        for others in [[j for j in range(6) if j != i]]
    ]
    assert similarity_disorders(found, target).tolist() == pytest.approx(expected, abs=1e-5)


def test_a_shift_of_all_similarities_is_an_error_but_no_disorder() -> None:
    target = unit(6, 8)
    # A direction that all embeddings get: similarities become a * s + b.
    shifted = torch.cat([0.8 * target, torch.full((6, 1), 0.6)], 1)
    wider = torch.cat([target, torch.zeros(6, 1)], 1)
    assert similarity_disorders(shifted, wider).abs().max() < 1e-9
    assert (distances(shifted, wider) - own_distances(shifted, wider)).min() > 0.05


@pytest.mark.parametrize("measure", [similarity_disorders, disagreements])
def test_too_few_sequences_for_an_order_are_refused(measure) -> None:
    found, target = unit(3, 8, seed=1), unit(3, 8, seed=2)
    with pytest.raises(ValueError, match="3 embeddings have no order: give at least 4"):
        measure(found, target)


def test_values_of_the_former_weighting_are_told_apart_and_those_of_other_kinds_are_not() -> None:
    assert proxies.facts(ProxyConfig(kind="embedding"))["version"] == 2
    assert proxies.facts(ProxyConfig()) == {"kind": "kl", "top_k": 256}
