"""Candidates on a GPU: the same values, and the next one is begun before the last one is read."""

import warnings

import numpy as np
import pytest
import torch

from evocompress.compression.live_model import LiveModel
from evocompress.core.config import ProxyConfig
from evocompress.core.requests import Evaluate
from evocompress.core.types import Candidate
from evocompress.evaluation.proxies import make_proxy
from evocompress.testing.proxies import dropped, micro_batches
from evocompress.testing.tiny import tiny_loaded

BATCHES = (0, 1, 2)


def requests(loaded):
    names = ("0.mlp", "1.attention", "1.mlp", "2.attention", "2.mlp")
    return [Evaluate(dropped(loaded, name), BATCHES) for name in names]


def proxy_of(live):
    return make_proxy(live, micro_batches(live.loaded), ProxyConfig(top_k=20))


def on_gpu():
    loaded = tiny_loaded("llama", layers=4)
    loaded.model.to("cuda")
    return loaded


@pytest.mark.gpu
def test_the_values_of_a_gpu_are_those_of_the_cpu():
    with LiveModel(tiny_loaded("llama", layers=4)) as cpu, LiveModel(on_gpu()) as gpu:
        here, there = (proxy_of(live).evaluate(requests(live.loaded)) for live in (cpu, gpu))
    values = [[result.mean for result in results] for results in (here, there)]
    np.testing.assert_allclose(values[1], values[0], rtol=1e-4)


@pytest.mark.gpu
def test_only_reading_values_waits_for_a_gpu():
    with LiveModel(on_gpu()) as live:
        proxy, asked = proxy_of(live), requests(live.loaded)
        proxy.evaluate([Evaluate(Candidate(), BATCHES)])
        torch.cuda.set_sync_debug_mode("warn")
        try:
            # Each time, not once for a line of code.
            with warnings.catch_warnings(record=True, action="always") as found:
                list(proxy.stream(asked))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = sum("called a synchronizing" in str(warning.message) for warning in found)
    assert waits == len(asked) * len(BATCHES)


@pytest.mark.parametrize("ahead", [0, 1])
def test_reading_behind_changes_neither_order_nor_values(ahead, monkeypatch):
    with LiveModel(tiny_loaded("llama", layers=4)) as live:
        asked = requests(live.loaded)
        expected = proxy_of(live).evaluate(asked)
        monkeypatch.setattr(
            "evocompress.evaluation.proxies.evaluator.ahead_on", lambda device: ahead
        )
        log = []
        proxy = proxy_of(live)
        advance, read = proxy._advance, proxy._read
        monkeypatch.setattr(proxy, "_advance", lambda *a: log.append("run") or advance(*a))
        monkeypatch.setattr(proxy, "_read", lambda *a: log.append("read") or read(*a))
        assert proxy.evaluate(asked) == expected
    assert log[:3] == (["run", "read", "run"] if ahead == 0 else ["run", "run", "read"])
