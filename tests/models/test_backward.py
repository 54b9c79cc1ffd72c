"""Block by block the gradients are those of the whole model, in less memory."""

import pytest
import torch

from evocompress.compression.live_model import LiveModel
from evocompress.core.types import DENSE, DROP, Candidate
from evocompress.evaluation.estimates import ESTIMATES
from evocompress.evaluation.estimates.base import Subject
from evocompress.evaluation.estimates.score import sampled_score
from evocompress.models import backward
from evocompress.models.backward import (
    differentiable,
    kept_bytes,
    read_gradients,
    short_of_memory,
)
from evocompress.models.families.outer import every_unit
from evocompress.testing.tiny import tiny_loaded

IDS = torch.randint(256, (1, 12), generator=torch.Generator().manual_seed(5))


@pytest.fixture(params=["llama", "phi3", "gpt2", "opt"])
def loaded(request):
    return tiny_loaded(request.param)


def gradients(loaded, **options):
    """{(loss, parameter): gradient} of the blocks, the embedding and the head, for two losses."""
    units = every_unit(loaded.family, loaded.model)
    outer = [f"{unit.name}.weight" for unit in units if unit.kind == "outer"]
    parts = (f"{loaded.family.layers_path}.", *outer)
    named = {n: p for n, p in loaded.model.named_parameters() if n.startswith(parts)}
    found = {}

    def reader(loss):
        def take(name, gradient):
            assert (loss, name) not in found or name in outer
            found[loss, name] = found.get((loss, name), 0) + gradient.clone()

        return take

    def plain(outputs, rows):
        return outputs.probabilities - 0.1

    losses = [sampled_score(IDS, Candidate(), 11), plain]
    with differentiable(named):
        read_gradients(loaded, IDS, losses, [reader(0), reader(1)], **options)
    assert found.keys() == {(loss, name) for loss in (0, 1) for name in named}
    return found


@pytest.mark.parametrize("model_type", ["llama", "phi3", "gpt2", "opt", "gemma4_text"])
def test_they_are_the_same(model_type):
    """Of Gemma 4 blocks are given what the embedding gave as well."""
    loaded = tiny_loaded(model_type)
    whole, parts = gradients(loaded, by_block=False), gradients(loaded, by_block=True)
    for key, gradient in whole.items():
        torch.testing.assert_close(parts[key], gradient)


def test_where_memory_is_short_it_goes_block_by_block(loaded, monkeypatch):
    hidden, arguments = loaded.family.block_inputs(loaded.model, IDS)
    blocks = loaded.family.blocks(loaded.model)
    needed = len(blocks) * kept_bytes(blocks[0], hidden, arguments[0])
    short = []
    for available in (2 * needed, 2 * needed - 1):
        monkeypatch.setattr(backward, "available_bytes", lambda _, free=available: free)
        short.append(short_of_memory(loaded, IDS))
    assert short == [False, True]


def test_an_estimate_is_the_same_where_memory_is_short(loaded, monkeypatch):
    unit = next(name for name in LiveModel(loaded).units if name.endswith("1.mlp"))
    found = []
    for available in (2**60, 1):
        monkeypatch.setattr(backward, "available_bytes", lambda _, free=available: free)
        with LiveModel(loaded) as live:
            subject = Subject(live, [IDS], Candidate(), {unit: (DENSE, DROP)})
            found.append(ESTIMATES["linearised"](subject)[unit])
    assert found[0] == pytest.approx(found[1], rel=1e-4, abs=1e-6)
    assert any(found[0])


def test_what_a_pass_keeps_is_counted_without_the_weights():
    linear = torch.nn.Linear(8, 4)
    block = torch.nn.Sequential(linear, torch.nn.Sigmoid())
    hidden = torch.zeros(1, 3, 8)
    # What enters the matrix, and what leaves the sigmoid.
    assert kept_bytes(block, hidden, {}) == 4 * (3 * 8 + 3 * 4)
