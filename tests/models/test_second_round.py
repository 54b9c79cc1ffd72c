"""A compressed checkpoint of format ``hf`` as the dense model of a second round."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from run_files import EVOPRESS, tiny_run, written
from tiers import by_tier
from torch.utils.flop_counter import FlopCounterMode

from evocompress import api
from evocompress.compression.live_model import LiveModel
from evocompress.core.canonical import canonical
from evocompress.core.config import SpaceConfig
from evocompress.core.config_file import load_config
from evocompress.core.errors import ConfigError, ExportError
from evocompress.core.types import DROP, Candidate, Level
from evocompress.evaluation.estimates import ESTIMATES
from evocompress.evaluation.estimates.base import Subject
from evocompress.export import FORMATS, choose_format, materialize, read_record
from evocompress.export.reload import read_checkpoint
from evocompress.export.weights import with_fused_experts
from evocompress.models.families import family_named
from evocompress.models.families.convolutional import Convolutional
from evocompress.models.families.uneven import is_compressed
from evocompress.models.loading import LoadedModel, load
from evocompress.models.modeling import CLASSES
from evocompress.pipeline.planning.outline import outline
from evocompress.space.build import build_space
from evocompress.space.costs import CostModel, cost_model
from evocompress.testing.formats import (
    assert_written,
    candidate_of,
    greedy,
    heads,
    in_memory,
    needing_bias,
    with_zeros,
)
from evocompress.testing.plain_library import PlainLibrary
from evocompress.testing.probes import answer, assert_equal, random_batch, random_ids
from evocompress.testing.tiny import (
    MIXTURES,
    NAMES,
    declared,
    tiny_loaded,
    windowless,
)

REFUSED = [name for name in NAMES if isinstance(declared(name), Convolutional)]
SERVED = [name for name in NAMES if name not in (*REFUSED, *MIXTURES)]
COUNTED = ("params", "body_params", "nonzeros", "matrix_nonzeros", "weight_bytes")


def first_candidate(loaded: LoadedModel) -> Candidate:
    """Of five blocks: no MLP; both narrow, with biases; gone; no attention; dense."""
    levels = {
        "0.mlp": DROP,
        "1.attention": needing_bias(loaded, heads(loaded)[-1]),
        "1.mlp": needing_bias(loaded, Level(channels=72)),
        "2": DROP,
        "3.attention": DROP,
        "3.mlp": Level(channels=100),
    }
    return candidate_of(loaded, levels)


def write_first(folder: Path, loaded: LoadedModel, format: str = "hf") -> Path:
    """The checkpoint of `first_candidate`, and how its states are pooled."""
    candidate = first_candidate(loaded)
    materialize(loaded, PlainLibrary(loaded), candidate, folder, format=format)
    if loaded.family.task.compared == "embeddings":
        flag = "lasttoken" if loaded.family.task.pooling == "last" else "mean_tokens"
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling/config.json").write_text(json.dumps({f"pooling_mode_{flag}": True}))
    return folder


def once_compressed(folder: Path, name: str = "llama") -> LoadedModel:
    """A tiny model after its first round."""
    return load(str(write_first(folder, tiny_loaded(name, layers=5))), device="cpu")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return once_compressed(tmp_path_factory.mktemp("first") / "llama")


def costs_of(loaded: LoadedModel) -> CostModel:
    architecture = loaded.family.architecture(loaded.model)
    length = architecture.tokens or 16
    return cost_model(loaded.family.units(loaded.model), architecture, length=length)


def second_candidates(loaded: LoadedModel) -> dict[str, Candidate]:
    """Everything that is left narrowed again and with zeros; and each single drop there is."""
    units, blocks = loaded.family.units(loaded.model), f"{loaded.family.layers_path}."
    channels = loaded.family.architecture(loaded.model).channels
    biased = {u.parent for u in units if u.kind == "matrix" and u.columns and u.bias}
    levels = with_zeros(loaded, {})
    for unit in units:
        name = unit.name.removeprefix(blocks)
        if unit.kind == "mlp":
            levels[name] = Level(channels=channels[unit.block] // 2, bias=unit.name not in biased)
        if unit.kind == "attention":
            levels[name] = Level(kv_groups=1, group_heads=1, bias=unit.name not in biased)
    parts = [unit for unit in units if unit.kind != "matrix"]
    drops = {unit.name: canonical({unit.name: DROP}, units) for unit in parts}
    return {"narrowed": candidate_of(loaded, levels)} | drops


def test_its_units_are_what_is_left(llama: LoadedModel) -> None:
    units = llama.family.units(llama.model)
    parts = [unit.name.removeprefix("model.layers.") for unit in units if unit.kind != "matrix"]
    assert parts == [
        *("0", "0.attention"),
        *("1", "1.attention", "1.mlp"),
        *("3", "3.mlp"),
        *("4", "4.attention", "4.mlp"),
    ]
    modules = dict(llama.model.named_modules())
    for unit in units:
        if unit.kind == "matrix":
            assert unit.shape == tuple(modules[unit.name].weight.shape)
            assert unit.bias == (modules[unit.name].bias is not None)
    architecture = llama.family.architecture(llama.model)
    assert architecture.kv_heads == (2, 2, 0, 0, 2)
    assert architecture.heads == (4, 2, 0, 0, 4)
    assert architecture.channels == (0, 72, 0, 100, 128)


@pytest.mark.parametrize("name", CLASSES)
def test_the_classes_of_checkpoints_are_known(name: str) -> None:
    classes = CLASSES[name]
    kind, head = classes.config.model_type, classes.head.__name__
    assert is_compressed(kind)
    if name in SERVED:
        family = family_named(kind, [head])
        assert (family.model_type, family.task) == (declared(name).model_type, declared(name).task)


@pytest.mark.parametrize("name", by_tier(SERVED))
def test_every_family_goes_two_rounds(name: str, tmp_path: Path) -> None:
    """Read as it was written, costed as it is, and written again as it was in memory."""
    dense = tiny_loaded(name, layers=5)
    loaded = load(str(write_first(tmp_path / "first", dense)), device="cpu")
    batch = random_batch(loaded.family, loaded.model)
    expected = in_memory(dense, first_candidate(dense), batch)
    torch.testing.assert_close(answer(loaded.family, loaded.model, batch), expected)
    costs, parameters = costs_of(loaded), loaded.model.parameters()
    blocks = loaded.family.blocks(loaded.model).parameters()
    assert costs.of([Candidate()])["params"].item() == sum(p.numel() for p in parameters)
    assert costs.of([Candidate()])["body_params"].item() == sum(p.numel() for p in blocks)
    library, step = PlainLibrary(loaded), 1 if name == "llama" else 5
    for number, candidate in enumerate(list(second_candidates(loaded).values())[::step]):
        out = materialize(loaded, library, candidate, tmp_path / f"second{number}")
        assert_written(out, loaded, candidate)
        if name == "llama":
            again = read_checkpoint(out, loaded.model)
            assert_equal(answer(loaded.family, again, batch), in_memory(loaded, candidate, batch))
        predicted, record = costs.of([candidate]), read_record(out)
        assert record.format == "hf"
        for cost in COUNTED:
            assert predicted[cost].item() == record.measured[cost], cost


@pytest.mark.parametrize("change", ["dense", "narrowed", "model.layers.1.attention"])
def test_flops_are_those_torch_counts(llama: LoadedModel, change: str) -> None:
    candidate = ({"dense": Candidate()} | second_candidates(llama))[change]
    length = 16
    with (
        LiveModel(llama, PlainLibrary(llama)) as live,
        torch.no_grad(),
        FlopCounterMode(display=False) as counter,
    ):
        live.apply(candidate)
        llama.model.set_attn_implementation("eager")
        llama.model(random_ids()[:1, :length], use_cache=False)
    operators = counter.get_flop_counts()["Global"]
    linear = sum(operators.get(op, 0) for op in (torch.ops.aten.mm, torch.ops.aten.addmm))
    attention = {"dense": (4, 2, 4), "narrowed": (1, 1, 1)}.get(change, (4, 4))
    pairs = length * (length + 1) // 2
    predicted = costs_of(llama).of([candidate])["flops"].item()
    assert predicted == linear + sum(4 * heads * 16 * pairs for heads in attention)


def test_the_config_composes_both_rounds(llama: LoadedModel, tmp_path: Path) -> None:
    levels = {
        "1.attention": DROP,
        "1.mlp": Level(channels=40),
        "4.attention": Level(kv_groups=1, group_heads=2),
    }
    out = materialize(
        llama, PlainLibrary(llama), candidate_of(llama, levels | {"0": DROP}), tmp_path / "out"
    )
    config = json.loads((out / "config.json").read_text())
    assert (config["model_type"], config["num_hidden_layers"]) == ("evocompress_derived", 5)
    layers = config["per_layer_config"].items()
    assert {layer: {k: v for k, v in own.items() if k != "edits"} for layer, own in layers} == {
        "0": {"skip": ["attention", "mlp"]},
        "1": {"skip": ["attention"], "num_attention_heads": 2, "intermediate_size": 40}
        | {"bias": ["mlp"]},
        "2": {"skip": ["attention", "mlp"]},
        "3": {"skip": ["attention"], "intermediate_size": 100},
        "4": {"num_attention_heads": 2, "num_key_value_heads": 1},
    }


def space_of(loaded: LoadedModel, **settings: Any) -> dict[str, list[str]]:
    """The levels of a space by the ends of the units' names."""
    units, architecture = (
        loaded.family.units(loaded.model),
        loaded.family.architecture(loaded.model),
    )
    space = build_space(units, architecture, SpaceConfig(**settings), length=16)
    names = (unit.name.removeprefix("model.layers.") for unit in space.units)
    levels = ([level.key for level in own] for own in space.levels)
    return dict(zip(names, levels, strict=True))


def test_widths_are_relative_to_each_layer(llama: LoadedModel) -> None:
    width = {"units": ["mlp"], "channels": [0.5], "multiple_of": 4}
    halves = {"1.mlp": Level(channels=36), "3.mlp": Level(channels=52), "4.mlp": Level(channels=64)}
    found = space_of(llama, width=width)
    assert {name: keys[1:] for name, keys in found.items()} == {
        name: [level.key] for name, level in halves.items()
    }


def test_widths_that_a_narrower_layer_does_not_have_are_left_out(llama: LoadedModel) -> None:
    width = {"units": ["mlp"], "channels": [96, 48], "multiple_of": 1}
    found = space_of(llama, width=width)
    assert {name: len(keys) - 1 for name, keys in found.items()} == {
        "1.mlp": 1,
        "3.mlp": 2,
        "4.mlp": 2,
    }
    assert "1.mlp" not in space_of(llama, width=width | {"channels": [0.5], "multiple_of": 80})
    with pytest.raises(ConfigError, match="multiple_of: 256 is more than the model's 128"):
        space_of(llama, width=width | {"multiple_of": 256})
    with pytest.raises(ConfigError, match="channels: 200 is more than the model's 128"):
        space_of(llama, width=width | {"channels": [200, 8]})


ESTIMATED = (
    *("block_influence", "angular_distance", "last_angular_distance", "fluctuation", "taylor"),
    *("magnitude", "lamp", "outliers", "tail_exponent", "perturbation", "pq_index"),
)


@pytest.mark.parametrize("kind", ESTIMATED)
def test_estimates_are_those_of_the_first_rounds_candidate(kind: str, tmp_path: Path) -> None:
    """The same function, once as a candidate of the dense model and once as the dense model."""
    dense = tiny_loaded("llama")
    candidate = candidate_of(dense, {"0.mlp": DROP, "1.attention": DROP})
    out = materialize(dense, PlainLibrary(dense), candidate, tmp_path / "out")
    loaded, ids = load(str(out), device="cpu"), [random_ids()[:1, :20]]
    expected = ESTIMATES[kind](Subject(LiveModel(dense), ids, candidate))
    found = ESTIMATES[kind](Subject(LiveModel(loaded), ids, Candidate()))
    names = {unit.name for unit in loaded.family.units(loaded.model)}
    assert found.keys() == expected.keys() & names
    for name, row in found.items():
        assert row == pytest.approx(expected[name], rel=1e-4, abs=1e-6)


def test_no_code_of_the_checkpoint_is_run(tmp_path: Path) -> None:
    folder = write_first(tmp_path / "first", tiny_loaded("llama", layers=5))
    for path in folder.glob("*.py"):
        path.write_text("raise AssertionError('code of the checkpoint was run')")
    for trusted in (False, True):
        load(str(folder), device="cpu", trust_remote_code=trusted)
        outline(str(folder), trust_remote_code=trusted)


def test_it_can_be_planned_with(llama: LoadedModel) -> None:
    planned = outline(llama.source)
    assert planned.family.units(planned.model) == llama.family.units(llama.model)
    own = llama.family.architecture(llama.model)
    assert planned.family.architecture(planned.model) == own


def test_blocks_may_come_to_the_device_one_by_one(llama: LoadedModel) -> None:
    blocks = sum(p.nbytes for p in llama.family.blocks(llama.model).parameters())
    whole = sum(p.nbytes for p in llama.model.parameters())
    streamed = load(llama.source, device="cpu", device_memory=whole - blocks // 3)
    assert streamed.fingerprint == llama.fingerprint
    batch = random_batch(llama.family, llama.model)
    expected = answer(llama.family, llama.model, batch)
    torch.testing.assert_close(answer(llama.family, streamed.model, batch), expected)


@pytest.mark.parametrize("format", sorted({*FORMATS.built_in} - {"hf", "compressed-tensors"}))
def test_other_formats_are_refused_by_name(llama: LoadedModel, format: str) -> None:
    with pytest.raises(ExportError) as caught:
        choose_format(llama, Candidate(), format)
    assert str(caught.value) == (
        f"format '{format}' cannot hold this llama model, a compressed checkpoint whose layers "
        "differ already: format 'hf' can"
    )


def test_what_needs_layers_that_are_alike_is_refused(llama: LoadedModel) -> None:
    alike = {
        "drop": {"units": ["block"], "merge": True},
        "width": {"channels": [0.5], "multiple_of": 4, "uniform": True},
    }
    with pytest.raises(ConfigError, match="cannot be merged where they differ, as 'model.layers.1"):
        space_of(llama, drop=alike["drop"])
    with pytest.raises(ConfigError, match="uniform: the layers of this model differ in width"):
        space_of(llama, width=alike["width"])
    units = llama.family.units(llama.model)
    merged = {"model.layers.0": Level(merge=1), "model.layers.1": DROP}
    with pytest.raises(ConfigError, match="block 'model.layers.0': blocks cannot be merged where"):
        canonical(merged, units)


def run_of(folder: Path, name: str, source: Path, **changes: Any) -> Any:
    run = tiny_run(
        folder,
        {"library_sequences": 4},
        name=name,
        model={"source": str(source), "device": "cpu"},
        space={
            "width": {"multiple_of": 8},
            "drop": {"units": ["attention", "mlp"]},
            "sparsity": {"target": 0.25},
            "budget": {"body_params": 0.7},
        },
        search=EVOPRESS | {"generations": 2},
        heal={"steps": 2, "validation_sequences": 2},
        evaluate={"prefill": [1, 16], "decode": [8, 4], "repeats": 2, "latency_seconds": 0},
    )
    return load_config(written(folder / f"{name}.yaml", run | changes))


def saved(loaded: LoadedModel, folder: Path) -> Path:
    assert loaded.tokenizer is not None
    with_fused_experts(loaded.model).save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["llama", "olmo2", "mixtral"])
def test_two_rounds_end_to_end(kind: str, tmp_path: Path) -> None:
    """Searched, written, healed; searched again, written, healed, evaluated and reported."""
    source = saved(windowless(kind, layers=3), tmp_path / "tiny")
    first = api.search(run_of(tmp_path, "first", source))
    api.materialize(first, form="hf")
    healed = api.heal(first)
    second = api.search(run_of(tmp_path, "second", healed))
    out = api.materialize(second)
    record, loaded = read_record(out), load(str(healed), device="cpu")
    assert (record.format, record.source) == ("hf", str(healed))
    assert record.model_fingerprint == loaded.fingerprint
    sizes = {cost: record.measured[cost] for cost in ("params", "body_params", "weight_bytes")}
    assert sizes == {cost: record.predicted[cost] for cost in sizes}
    # Zeros of the first round stay where the second asks for fewer.
    assert record.measured["nonzeros"] <= record.predicted["nonzeros"]
    before = sum(p.numel() for p in loaded.family.blocks(loaded.model).parameters())
    assert sizes["body_params"] <= 0.7 * before
    api.heal(second)
    rows = {row["name"]: row for row in json.loads(api.evaluate(second).read_text())["rows"]}
    assert rows.keys() == {"dense", "uniform", "searched", "healed"}
    for row in rows.values():
        assert row["flops"] == row["predicted"]["flops"]
    assert rows["dense"]["params"] == sum(p.numel() for p in loaded.model.parameters())
    assert rows["healed"]["params"] == sizes["params"]
    assert api.report(second).is_file()
    ids, model = random_ids(), read_checkpoint(out, loaded.model)
    assert torch.equal(greedy(model, ids, cache=True), greedy(model, ids, cache=False))


def test_a_table_of_latencies_is_refused(llama: LoadedModel, tmp_path: Path) -> None:
    space = {"width": {"multiple_of": 8}, "budget": {"latency": 0.7}}
    with pytest.raises(ConfigError, match="latency: .* is a compressed checkpoint whose layers"):
        api.search(run_of(tmp_path, "timed", Path(llama.source), space=space))
