"""What llama.cpp computes with a cache of few bits, and what the search takes it to compute."""

import pytest
import torch

from evocompress.compression.live_model import LiveModel
from evocompress.core.types import Candidate, Level
from evocompress.export import materialize
from evocompress.testing.engines import llama_cpp_compare, why_missing
from evocompress.testing.tiny import windowless

pytestmark = pytest.mark.engines

TYPES = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")


def divergence(dense, logits):
    first, second = (each[0, :-1].double().log_softmax(-1) for each in (dense, logits))
    return float((first.exp() * (first - second)).sum(-1).mean())


# Heads of 96 are not turned, of 64 once; Llama's keys lie in another order in the file.
@pytest.mark.parametrize(
    ("kind", "hidden", "close"), [("qwen3", 384, 0.05), ("qwen3", 256, 0.05), ("llama", 256, 0.15)]
)
@torch.no_grad()
def test_errors_of_a_cache_are_llama_cpp_s(kind, hidden, close, tmp_path):
    if reason := why_missing("llama.cpp"):
        pytest.skip(reason)
    loaded = windowless(kind, layers=3, hidden=hidden)
    file = materialize(loaded, None, Candidate(), tmp_path / "out", format="gguf") / "model.gguf"
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(1, 240, (1, 200), generator=generator) for _ in range(4)]
    answer = llama_cpp_compare(
        file,
        [file] * len(TYPES),
        [each[0].tolist() for each in ids],
        caches=[name.upper() for name in TYPES],
        new_tokens=1,
        repeats=0,
    )
    dense = [loaded.model(each).logits for each in ids]
    with LiveModel(loaded) as live:
        caches = [unit.name for unit in live.tree if unit.kind == "cache"]
        for name, found in zip(TYPES, answer["files"][1:], strict=True):
            live.apply(Candidate(tuple((unit, Level(cache=name)) for unit in caches)))
            pairs = zip(dense, ids, strict=True)
            ours = sum(divergence(whole, loaded.model(each).logits) for whole, each in pairs)
            # It rounds queries to eight bits as well, which shows beside a cache of as many.
            assert sum(found["kl"]) == pytest.approx(ours, rel=close, abs=4e-4), name
