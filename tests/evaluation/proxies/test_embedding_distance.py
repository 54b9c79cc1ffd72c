"""How far embeddings and their similarities to each other are from the dense model's."""

import pytest
import torch
from torch import Tensor

from evocompress.core.config import ProxyConfig
from evocompress.evaluation import proxies
from evocompress.models.embedding_distance import distances, own_distances


def unit(*shape: int, seed: int = 0) -> Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=-1)


def test_the_distance_is_that_of_each_embedding_and_of_its_similarities() -> None:
    found, target = unit(6, 8, seed=1).double(), unit(6, 8, seed=2).double()
    expected = [
        1
        - float(found[i] @ target[i])
        + sum(float(found[i] @ found[j] - target[i] @ target[j]) ** 2 for j in range(6) if j != i)
        / 5
        for i in range(6)
    ]
    assert distances(found, target).tolist() == pytest.approx(expected)


def test_turning_all_embeddings_alike_moves_them_and_keeps_their_similarities() -> None:
    target = unit(6, 8)
    turned = target.flip(1)
    assert own_distances(turned, target).min() > 0.1
    torch.testing.assert_close(distances(turned, target), own_distances(turned, target))


def test_an_embedding_alone_has_no_similarities() -> None:
    found, target = unit(1, 8, seed=1), unit(1, 8, seed=2)
    assert torch.equal(distances(found, target), own_distances(found, target))


def test_values_of_another_weighting_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ProxyConfig(kind="embedding")
    assert "version" not in proxies.proxy_facts(config)
    monkeypatch.setattr(proxies.PROXIES["embedding"], "version", 2)
    assert proxies.proxy_facts(config)["version"] == 2
