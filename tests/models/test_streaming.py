"""Blocks that come to the device when they run: the same results, within the memory allowed."""

import weakref
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from run_files import tiny_run
from torch import nn

from evocompress import api
from evocompress.compression.library import build_library
from evocompress.compression.live_model import LiveModel
from evocompress.core.config import LibraryConfig, ProxyConfig, RunConfig
from evocompress.core.errors import ConfigError, ModelError
from evocompress.core.files import read_json
from evocompress.core.requests import Evaluate
from evocompress.core.types import DENSE, DROP, Candidate, Level
from evocompress.evaluation.estimates import ESTIMATES
from evocompress.evaluation.estimates.base import Subject
from evocompress.evaluation.proxies import kinds_for, make_proxy
from evocompress.evaluation.proxies import layered as layered_states
from evocompress.models.streaming import BlockCache, stream_blocks
from evocompress.pipeline import stages
from evocompress.pipeline.checks import check_settings
from evocompress.pipeline.context import RunContext
from evocompress.testing.plain_library import PlainLibrary
from evocompress.testing.proxies import dropped, micro_batches
from evocompress.testing.tiny import (
    DECODERS,
    ENCODERS,
    VARIED,
    declared,
    tiny_checkpoint,
    tiny_loaded,
)

LAYERS = 6


class Counted:
    """A model whose blocks come and go, and what was on the device meanwhile."""

    def __init__(self, model_type="llama", blocks=2.5, **kind):
        self.loaded = tiny_loaded(model_type, layers=LAYERS, **kind)
        self.blocks = list(self.loaded.family.blocks(self.loaded.model))
        self.block_bytes = sum(p.nbytes for p in self.blocks[0].parameters())
        self.resident = self.most = self.copies = 0
        self.limit = int(blocks * self.block_bytes)
        self.cache = BlockCache(self.blocks, self.limit, self.copy)
        self.loaded = replace(self.loaded, cache=self.cache)

    def copy(self, source):
        copied = source.clone()
        self.copies += 1
        self.resident += copied.nbytes
        self.most = max(self.most, self.resident)
        # The parameter's own storage: freed once neither cache nor block holds it.
        weakref.finalize(copied.untyped_storage(), self.forget, copied.nbytes)
        return copied

    def forget(self, nbytes):
        self.resident -= nbytes


def candidates(loaded):
    """Narrow, sparse, dropped and dense ones, some of which begin alike."""
    path, heads = loaded.family.layers_path, Level(kv_groups=1, group_heads=1)
    if loaded.family.architecture(loaded.model).kv_heads[0] == 1:
        heads = DENSE
    matrix = next(unit for unit in LiveModel(loaded).units.values() if unit.kind == "matrix")
    sparse = (matrix.name, Level(zeros=matrix.numel // 2))
    narrow = (f"{path}.3.mlp", Level(channels=48))
    few = (f"{path}.4.attention", heads)
    typed = {u: Level(bits="q4_0") for u, v in LiveModel(loaded).units.items() if v.kind == "outer"}
    return [
        Candidate(),
        Candidate((narrow, (f"{path}.5.mlp", DROP))),
        Candidate(tuple(sorted((narrow, few, (f"{path}.5.mlp", DROP), *typed.items())))),
        Candidate((sparse, narrow)),
        dropped(loaded, "1.attention", "1.mlp"),
    ]


def requests(loaded):
    return [
        Evaluate(candidate, places)
        for candidate, places in zip(
            candidates(loaded), [(0, 1, 2), (0,), (2, 1), (0, 1), (1,)], strict=True
        )
    ]


SERVED = [(k, name) for name in (*DECODERS, *ENCODERS) for k in kinds_for(declared(name).task)]


@pytest.mark.parametrize(
    ("kind", "model_type"),
    [
        p if p[1] in (*VARIED, *ENCODERS) else pytest.param(*p, marks=pytest.mark.long)
        for p in SERVED
    ],
)
def test_values_are_those_of_the_whole_model(kind, model_type):
    whole, counted = tiny_loaded(model_type, layers=LAYERS), Counted(model_type)
    found = []
    for loaded in (whole, counted.loaded):
        with LiveModel(loaded, PlainLibrary(loaded)) as live:
            proxy = make_proxy(live, micro_batches(loaded), ProxyConfig(kind=kind))
            asked = requests(loaded)
            limits = [replace(each, stop_above=1e-9) for each in asked[2:]]
            found.append(proxy.evaluate(asked) + proxy.evaluate(limits))
    assert found[0] == found[1]
    assert any(result.censored for result in found[1])
    assert 0 < counted.most <= counted.limit == pytest.approx(2.5 * counted.block_bytes, rel=0.01)
    assert counted.cache.peak == counted.most


def test_a_treatment_is_refused_and_not_left_out():
    loaded = Counted().loaded
    request = Evaluate(Candidate(), (0,), treatment="tuned")
    with LiveModel(loaded) as live:
        batches, treatments = micro_batches(loaded), {"tuned": nullcontext}
        proxy = make_proxy(live, batches, ProxyConfig(), treatments)
        with pytest.raises(ValueError, match="knows no treatment 'tuned'"):
            proxy.evaluate([request])


def test_each_block_comes_once_for_all_candidates():
    counted = Counted()
    loaded = counted.loaded
    with LiveModel(loaded) as live:
        proxy = make_proxy(live, micro_batches(loaded), ProxyConfig())
        proxy.evaluate([Evaluate(Candidate(), (0, 1, 2))])
        before = counted.copies
        drops = [dropped(loaded, f"{index}.mlp") for index in range(LAYERS)]
        proxy.evaluate([Evaluate(candidate, (0, 1, 2)) for candidate in drops])
    in_blocks = sum(len(list(block.parameters())) for block in counted.blocks)
    assert counted.copies - before <= in_blocks


def test_groups_fit_the_memory_for_waiting_states(monkeypatch):
    """Where there is little memory fewer candidates are run together, with the same values."""
    counted = Counted()
    loaded, asked = counted.loaded, requests(counted.loaded)
    results = []
    for share in (0.25, 0.0):
        monkeypatch.setattr(layered_states, "SHARE", share)
        with LiveModel(loaded, PlainLibrary(loaded)) as live:
            proxy = make_proxy(live, micro_batches(loaded), ProxyConfig())
            groups = list(proxy._layers.groups([(r.candidate, r.micro_batches) for r in asked]))
            assert [place for group in groups for place in group] == list(range(len(asked)))
            assert len(groups) == (1 if share else len(asked))
            results.append(proxy.evaluate(asked))
    assert results[0] == results[1]


# The other one only looks into the manifest of a library.
@pytest.mark.parametrize("kind", sorted(ESTIMATES.keys() - {"output_error"}))
def test_estimates_are_those_of_the_whole_model(kind):
    name = "mixtral" if kind in ("routing_frequency", "expert_output_error") else "llama"
    whole, counted = tiny_loaded(name, layers=LAYERS), Counted(name)
    rows = []
    for loaded in (whole, counted.loaded):
        unit = f"{loaded.family.layers_path}.2.mlp"
        levels = {unit: (DENSE, Level(channels=32), DROP)}
        levels["model.embed_tokens"] = (DENSE, Level(bits="q4_0"))
        with LiveModel(loaded, PlainLibrary(loaded)) as live:
            candidate = dropped(loaded, "1.mlp")
            subject = Subject(live, micro_batches(loaded), candidate, levels)
            rows.append(ESTIMATES[kind](subject))
    assert rows[0].keys() == rows[1].keys()
    for name, row in rows[0].items():
        torch.testing.assert_close(rows[1][name], row, rtol=1e-5, atol=1e-7)
    assert counted.most <= counted.limit


def test_a_backward_pass_can_use_what_a_forward_pass_brought():
    counted = Counted(blocks=LAYERS + 1)
    with LiveModel(counted.loaded, PlainLibrary(counted.loaded)) as live:
        unit = f"{live.loaded.family.layers_path}.2.mlp"
        levels = {unit: (DENSE, Level(channels=32), DROP)}
        subject = Subject(live, micro_batches(live.loaded), Candidate(), levels)
        ESTIMATES["fluctuation"](subject)
        assert ESTIMATES["curvature"](subject)[unit]
    assert counted.copies == LAYERS * len(list(counted.blocks[0].parameters()))


@pytest.mark.parametrize("criterion", ["obs_structured", "taylor"])
def test_a_library_is_the_whole_models(tmp_path, criterion):
    whole, counted = tiny_loaded(layers=LAYERS), Counted()
    tokens = torch.cat(micro_batches(whole))
    wanted = {"model.layers.2.mlp": (Level(channels=32),)}
    prints = set()
    for name, loaded in (("whole", whole), ("streamed", counted.loaded)):
        config = LibraryConfig(width_criterion=criterion)
        library = build_library(loaded, wanted, tokens, "t", config, tmp_path / name, batch=2)
        prints.add(library.fingerprint)
    assert len(prints) == 1
    assert 0 < counted.most <= counted.limit


def test_a_block_that_fails_gives_its_weights_back():
    counted = Counted()
    block = counted.blocks[1]
    before = {name: parameter.data_ptr() for name, parameter in block.named_parameters()}
    handle = block.mlp.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        counted.loaded.model(torch.arange(8)[None])
    handle.remove()
    assert {name: p.data_ptr() for name, p in block.named_parameters()} == before
    counted.loaded.model(torch.arange(8)[None])
    assert {name: p.data_ptr() for name, p in block.named_parameters()} == before


def test_too_little_memory_is_said_with_what_would_do():
    loaded = tiny_loaded()
    sizes = [p.nbytes for p in loaded.model.parameters()]
    of_block = sum(p.nbytes for p in loaded.family.blocks(loaded.model)[0].parameters())
    least = sum(sizes) - 2 * of_block
    with pytest.raises(ModelError, match=f"give at least {least}"):
        stream_blocks(loaded.model, loaded.family, torch.device("cpu"), least - 1)
    assert isinstance(
        stream_blocks(loaded.model, loaded.family, torch.device("cpu"), least), BlockCache
    )


def run_config(folder, **changes):
    space = {
        "width": {"multiple_of": 8, "channels": [0.5, 0.75]},
        "drop": {},
        "budget": {"body_params": 0.7},
    }
    run = tiny_run(folder, space=space, search={"name": "auto", "tokens": 6000})
    return RunConfig.model_validate(run | changes)


def test_a_search_in_a_third_of_the_memory_has_the_same_winner(tmp_path, monkeypatch):
    model = tiny_checkpoint(tmp_path / "model")
    tiny = tiny_loaded("llama", layers=8).model
    tiny.save_pretrained(model)
    size = sum(parameter.nbytes for parameter in tiny.parameters())
    records, contexts = [], []
    check = stages.check_inputs

    def noted(context):
        contexts.append(context)
        check(context)

    monkeypatch.setattr(stages, "check_inputs", noted)
    for name, memory in (("whole", None), ("third", size // 3)):
        source = {"source": str(model), "device_memory": memory}
        folder = api.search(run_config(tmp_path, name=name, model=source))
        records.append(((folder / "journal.jsonl").read_text(), read_json(folder / "winner.json")))
    assert records[0] == records[1]
    api.search(run_config(tmp_path, name="whole", model=source), resume=True)
    cache = contexts[1].loaded.cache
    outer = size - sum(p.nbytes for p in nn.ModuleList(tiny.model.layers).parameters())
    assert 0 < cache.peak <= size // 3 - outer
    assert contexts[0].loaded.cache is None
    api.materialize(folder)
    evaluated = read_json(api.evaluate(folder))
    assert all(row["prefill_ms"] is None for row in evaluated["rows"])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"search": {"name": "darwinlm"}}, "darwinlm"),
        ({"space": {"width": {}, "budget": {"latency": 0.7}}}, "a latency"),
    ],
)
def test_what_needs_the_whole_model_is_refused(tmp_path, changes, named):
    model = tiny_checkpoint(tmp_path / "model")
    source = {"source": str(model), "device_memory": "1MiB"}
    config = run_config(tmp_path, model=source, **changes)
    assert config.model.device_memory == 2**20
    context = RunContext(config, *(None, None))
    with pytest.raises(ConfigError, match=f"{named}.*unset model.device_memory"):
        check_settings(context)
