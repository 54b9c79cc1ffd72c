"""Sums of what matrices read, against the same in float64."""

import pytest
import torch
from torch import nn

from evocompress.compression.library import gram
from evocompress.compression.library.gram import LEAST_PANEL, PANELS, collecting


@pytest.mark.parametrize("together", [5, 24, 50, 2048])
@pytest.mark.parametrize("features", [7, LEAST_PANEL + 1, LEAST_PANEL * PANELS + 70])
def test_gram_matrices_are_symmetric_and_right(features, together, monkeypatch):
    monkeypatch.setattr(gram, "TOGETHER", together)
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(2, 12, features, generator=generator) for _ in range(3)]
    reader = nn.Linear(features, 3)
    with collecting({"x": reader}, {"x": {"gram", "sums"}}, 12) as sums, torch.no_grad():
        for batch in batches:
            reader(batch)
    rows = torch.cat(batches).flatten(0, 1).double()
    found = sums["x"]["gram"]
    assert torch.equal(found, found.T)
    torch.testing.assert_close(found.double(), rows.T @ rows, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sums["x"]["sums"].double(), rows.sum(0), rtol=1e-4, atol=1e-4)
