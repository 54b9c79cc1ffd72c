"""Block by block the gradients are those of the whole model, in less memory."""

import pytest
import torch

from evocompress.estimates import backward
from evocompress.estimates.backward import differentiable, kept_bytes, read_gradients
from evocompress.estimates.score import sampled_score
from evocompress.testing.tiny import tiny_loaded
from evocompress.types import Candidate

IDS = torch.randint(256, (1, 12), generator=torch.Generator().manual_seed(5))


@pytest.fixture(params=["llama", "phi3", "gpt2", "opt"])
def loaded(request):
    return tiny_loaded(request.param)


def gradients(loaded, **options):
    """{(loss, parameter): gradient} of the matrices and biases of the blocks, for two losses."""
    path = loaded.family.layers_path
    named = {n: p for n, p in loaded.model.named_parameters() if n.startswith(path)}
    found = {}

    def reader(loss):
        def take(name, gradient):
            assert (loss, name) not in found
            found[loss, name] = gradient.clone()

        return take

    losses = [sampled_score(IDS, Candidate(), 11), lambda probabilities, rows: probabilities - 0.1]
    with differentiable(named):
        read_gradients(loaded, IDS, losses, [reader(0), reader(1)], **options)
    assert found.keys() == {(loss, name) for loss in (0, 1) for name in named}
    return found


def test_they_are_the_same(loaded):
    whole, parts = gradients(loaded, by_block=False), gradients(loaded, by_block=True)
    for key, gradient in whole.items():
        torch.testing.assert_close(parts[key], gradient)


def test_where_memory_is_short_it_goes_block_by_block(loaded, monkeypatch):
    hidden, arguments = loaded.family.block_inputs(loaded.model, IDS)
    blocks = loaded.family.blocks(loaded.model)
    needed = len(blocks) * kept_bytes(blocks[0], hidden, arguments[0])
    ways = []
    for way in ("_at_once", "_by_block"):
        monkeypatch.setattr(backward, way, lambda *_, way=way: ways.append(way))
    for available in (2 * needed, 2 * needed - 1):
        monkeypatch.setattr(backward, "available_bytes", lambda _, free=available: free)
        read_gradients(loaded, IDS, [], [])
    assert ways == ["_at_once", "_by_block"]


def test_what_a_pass_keeps_is_counted_without_the_weights():
    linear = torch.nn.Linear(8, 4)
    block = torch.nn.Sequential(linear, torch.nn.Sigmoid())
    hidden = torch.zeros(1, 3, 8)
    # What enters the matrix, and what leaves the sigmoid.
    assert kept_bytes(block, hidden, {}) == 4 * (3 * 8 + 3 * 4)
