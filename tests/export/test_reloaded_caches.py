"""A checkpoint that is read back computes with the caches of its candidate."""

import pytest
import torch

from evocompress.compression.live_model import LiveModel
from evocompress.core.types import DROP, Candidate, Level
from evocompress.export import materialize
from evocompress.export.record import read_record
from evocompress.export.reload import read_checkpoint
from evocompress.testing.tiny import tiny_loaded


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "gpt2", "mixtral"])
@pytest.mark.parametrize(("dropped", "form"), [(None, "stock"), (0, "hf"), (1, "hf")])
@torch.no_grad()
def test_logits_are_those_of_the_model_in_memory(kind, dropped, form, tmp_path):
    loaded = tiny_loaded(kind, hidden=128)
    ids = torch.randint(1, 200, (1, 40), generator=torch.Generator().manual_seed(0))
    dense = loaded.model(ids, use_cache=False).logits
    with LiveModel(loaded) as live:
        caches = [unit for unit in live.tree if unit.kind == "cache"]
        levels = {
            unit.name: Level(cache=name)
            for unit, name in zip(caches, ("kv4", "kv2", "kv3"), strict=True)
            if unit.block != dropped
        }
        if dropped is not None:
            levels[caches[dropped].owner] = DROP
        candidate = Candidate(tuple(sorted(levels.items())))
        live.apply(candidate)
        expected = loaded.model(ids, use_cache=False).logits
    out = materialize(loaded, None, candidate, tmp_path / form)
    read = read_checkpoint(out, loaded.model)(ids, use_cache=False).logits
    torch.testing.assert_close(read, expected, rtol=1e-5, atol=1e-5)
    assert read_record(out).format == form
    assert float((read - dense).abs().max()) > 0.05
