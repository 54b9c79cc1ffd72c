from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from evocompress.compression.live_model import LiveModel
from evocompress.core.config import ProxyConfig
from evocompress.core.errors import ConfigError, ModelError
from evocompress.core.requests import Evaluate
from evocompress.core.types import Candidate
from evocompress.evaluation.proxies import (
    PROXIES,
    check_proxy,
    kinds_for,
    make_proxy,
)
from evocompress.evaluation.proxies.evaluator import MetricProxy
from evocompress.models import head
from evocompress.models.families.base import final_norm
from evocompress.models.loading import LoadedModel
from evocompress.testing import proxies as contract
from evocompress.testing.tiny import declared, tiny_loaded

NAMES = ("llama", "gpt2", "gemma2", "opt")
DISTANCES = ("kl", "js", "cosine")


@pytest.fixture(scope="module")
def llama() -> LoadedModel:
    return tiny_loaded("llama")


@pytest.fixture(params=sorted(PROXIES.built_in))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(kind: str) -> LoadedModel:
    """A model that the proxy is for."""
    return tiny_loaded("bert" if kind == "embedding" else "llama")


def served(*names: str) -> list[tuple[str, str]]:
    """(proxy, family) of each that has a brute-force reference."""
    pairs = [(kind, name) for name in names for kind in kinds_for(declared(name).task)]
    return [pair for pair in pairs if pair[0] in contract.REFERENCES]


@pytest.mark.parametrize(("kind", "name"), served(*NAMES, "bert-classifier", "vit"))
def test_values_are_those_of_brute_force(kind: str, name: str) -> None:
    loaded = tiny_loaded(name)
    contract.check_matches_reference(PROXIES[kind], contract.REFERENCES[kind], loaded, top_k=7)


@pytest.mark.parametrize("kind", ["kl", "js"])
def test_values_by_chunks_of_rows_are_those_of_brute_force(
    kind: str, llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, and in bfloat16."""
    monkeypatch.setattr("evocompress.models.vocabulary.in_slices", lambda *_: False)
    contract.check_matches_reference(PROXIES[kind], contract.REFERENCES[kind], llama, top_k=7)


@torch.inference_mode()
def unit_means(loaded: LoadedModel, batch: Tensor) -> Tensor:
    """The mean of the last states of a plain forward pass, of unit length, in float64 (B, H)."""
    output = loaded.model(**loaded.family.task.inputs(batch, loaded.model.dtype))
    means: Tensor = output.last_hidden_state.double().mean(1)
    lengths: Tensor = means.square().sum(-1, keepdim=True).sqrt()
    return means / lengths


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_embeddings_are_compared_as_by_brute_force(name: str) -> None:
    """Pair by pair."""
    loaded = tiny_loaded(name)
    batches = contract.micro_batches(loaded)
    candidate = contract.dropped(loaded, "0.mlp", "2.attention")
    with LiveModel(loaded) as live:
        metric = PROXIES["embedding"](loaded, ProxyConfig())
        proxy = MetricProxy(live, batches, metric)
        [result] = proxy.evaluate([Evaluate(candidate, (2, 0))])
        live.restore()
        dense = [unit_means(loaded, batch) for batch in batches]
        live.apply(candidate)
        changed = [unit_means(loaded, batch) for batch in batches]
    for value in result.values:
        one, other = dense[value.micro_batch], changed[value.micro_batch]
        expected = []
        for i in range(len(one)):
            others = [j for j in range(len(one)) if j != i]
            was, now = ([float(each[i] @ each[j]) for j in others] for each in (one, other))
            errors = [(a - b) ** 2 for a, b in zip(was, now, strict=True)]
            expected.append(1 - float(one[i] @ other[i]) + sum(errors) / len(errors))
        assert value.counts == (1,) * len(one)
        torch.testing.assert_close(
            list(value.sums), expected, rtol=contract.TOLERANCE, atol=contract.TOLERANCE
        )


def test_a_proxy_of_another_task_is_refused() -> None:
    for kind, name in (("kl", "bert"), ("perplexity", "vit"), ("embedding", "llama")):
        loaded = tiny_loaded(name)
        with pytest.raises(ConfigError, match=f"proxy.kind={kind} is not for tiny:{name}"):
            check_proxy(kind, loaded)
        check_proxy(kinds_for(loaded.family.task)[0], loaded)


@pytest.mark.parametrize("divergence", ["kl", "js"])
def test_all_tokens_kept_gives_the_full_divergence(divergence: str, llama: LoadedModel) -> None:
    reference = contract.REFERENCES[divergence]
    contract.check_matches_reference(PROXIES[divergence], reference, llama, top_k=256)


def test_company_does_not_matter(kind: str, model: LoadedModel) -> None:
    contract.check_company_does_not_matter(PROXIES[kind], model)


def test_stops_when_hopeless(kind: str, model: LoadedModel) -> None:
    contract.check_stops_when_hopeless(PROXIES[kind], model)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("model_type", NAMES)
def test_dense_model_does_not_diverge_from_itself(distance: str, model_type: str) -> None:
    contract.check_dense_has_no_divergence(PROXIES[distance], tiny_loaded(model_type))


@pytest.mark.parametrize("distance", DISTANCES)
def test_bfloat16_dense_model_does_not_diverge_from_itself(distance: str) -> None:
    loaded = tiny_loaded("llama", dtype=torch.bfloat16)
    contract.check_dense_has_no_divergence(PROXIES[distance], loaded)


@pytest.mark.parametrize("divergence", ["kl", "js"])
def test_divergence_in_buckets_is_a_lower_bound(divergence: str, llama: LoadedModel) -> None:
    contract.check_more_buckets_never_lower(PROXIES[divergence], llama)


def place(loaded: LoadedModel) -> tuple[Any, str]:
    """Object and name of a function that every evaluation calls, whatever states are shared."""
    if loaded.family.norm_path:
        return final_norm(loaded.family, loaded.model), "forward"
    return type(loaded.family), "outputs"


OUTCOMES = {
    "gpu memory": (torch.OutOfMemoryError("CUDA out of memory"), "out of memory"),
    "cpu memory": (
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
        "out of memory",
    ),
    "python memory": (MemoryError(), "out of memory"),
    "not a number": (float("nan"), "is nan"),
    "infinite": (float("inf"), "is nan"),
}


@pytest.mark.parametrize("outcome", sorted(OUTCOMES))
def test_survives_bad_candidates(kind: str, outcome: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_loaded("bert" if kind == "embedding" else "llama")
    event, reason = OUTCOMES[outcome]
    owner, name = place(loaded)
    original = getattr(owner, name)

    def broken_once(*arguments: Any) -> torch.Tensor:
        monkeypatch.undo()
        if isinstance(event, Exception):
            raise event
        return original(*arguments) * event

    def break_model() -> None:
        monkeypatch.setattr(owner, name, broken_once)

    contract.check_survives_bad_candidates(PROXIES[kind], loaded, break_model)
    with LiveModel(loaded) as live:
        proxy = make_proxy(live, contract.micro_batches(loaded), ProxyConfig(kind=kind))
        proxy.evaluate([Evaluate(Candidate(), (0,))])
        break_model()
        [result] = proxy.evaluate([Evaluate(Candidate(), (0,))])
    assert reason in (result.failed or "")


def test_other_errors_are_not_hidden(
    kind: str, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LiveModel(model) as live:
        proxy = make_proxy(live, contract.micro_batches(model), ProxyConfig(kind=kind))
        proxy.evaluate([Evaluate(Candidate(), (0,))])

        def wrong(*_: object) -> None:
            raise RuntimeError("shapes do not match")

        monkeypatch.setattr(*place(model), wrong)
        with pytest.raises(RuntimeError, match="shapes"):
            proxy.evaluate([Evaluate(Candidate(), (0,))])


def test_treatments_are_refused(kind: str, model: LoadedModel) -> None:
    with LiveModel(model) as live:
        proxy = make_proxy(live, contract.micro_batches(model), ProxyConfig(kind=kind))
        with pytest.raises(ValueError, match="treatment 'abc'"):
            proxy.evaluate([Evaluate(Candidate(), (0,), treatment="abc")])


def test_broken_dense_model_is_an_error() -> None:
    loaded = tiny_loaded()
    loaded.model.get_input_embeddings().weight.fill_(float("nan"))
    with LiveModel(loaded) as live:
        proxy = make_proxy(live, contract.micro_batches(loaded), ProxyConfig())
        with pytest.raises(ModelError, match="not finite"):
            proxy.evaluate([Evaluate(Candidate(), (0,))])


def test_the_size_of_chunks_does_not_matter(
    kind: str, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Evaluate(contract.dropped(model, "0.mlp"), (0, 2))
    sums = []
    for logit_rows, float_rows in ((1, 1), (7, 3), (1000, 11), (1000, 1000)):
        monkeypatch.setattr(head, "CPU_FLOAT32_LOGIT_BYTES", logit_rows * 256 * 4)
        monkeypatch.setattr(head, "CPU_FLOAT32_BYTES", float_rows * 256 * 4)
        with LiveModel(model) as live:
            proxy = make_proxy(
                live, contract.micro_batches(model), ProxyConfig(kind=kind, top_k=16)
            )
            [result] = proxy.evaluate([request])
        sums.append([value for part in result.values for value in part.sums])
    for other in sums[1:]:
        torch.testing.assert_close(other, sums[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["kl", "js"], indirect=False)
def test_targets_on_disk_give_the_same_values(kind: str) -> None:
    loaded, results = tiny_loaded("llama"), []
    batches = contract.micro_batches(loaded)
    for targets in ("memory", "disk"):
        with LiveModel(loaded) as live:
            proxy = make_proxy(live, batches, ProxyConfig(kind=kind, targets=targets))
            drops = [contract.dropped(loaded, f"{block}.mlp") for block in range(3)]
            results.append(proxy.evaluate([Evaluate(drop, (0, 1, 2)) for drop in drops]))
    assert results[0] == results[1]
    assert isinstance(proxy, MetricProxy)
    assert named_files(proxy) == {"(deleted)"}


def named_files(proxy: MetricProxy) -> set[str]:
    """What the files of a proxy's targets, which are mapped, are called."""
    pointers = [target.top.data_ptr() for batch in range(3) for target in proxy._targets[batch]]
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    bounds = [([int(part, 16) for part in line[0].split("-")], line[-1]) for line in lines]
    return {name for pointer in pointers for (a, b), name in bounds if a <= pointer < b}
