"""Format ``hf`` of models that have no modeling file of their own."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_cases import random_levels, write
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, DynamicCache, PreTrainedModel

import evocompress.hf  # noqa: F401
from evocompress.core.errors import ModelError
from evocompress.core.types import DROP, Candidate, Level
from evocompress.export import read_record
from evocompress.healing.student import load_student
from evocompress.models.families import Family
from evocompress.models.families.derivation.derived import Derived
from evocompress.models.loading import LoadedModel, load
from evocompress.models.modeling import modeling_derived
from evocompress.space.costs import CostModel, cost_model
from evocompress.testing.derived import typical_config, typical_loaded
from evocompress.testing.formats import (
    FormatContract,
    assert_written,
    candidate_of,
    in_memory,
    reload,
    uneven,
    with_bias,
    with_zeros,
)
from evocompress.testing.probes import assert_equal, random_ids
from evocompress.testing.tiny import tiny_loaded, windowless

TYPES = {
    "olmo2": "norms behind the sub-layers, and of all queries together",
    "smollm3": "layers without rotary embedding",
    "phi": "attention and MLP side by side behind one norm; biases",
    "gpt_neox": "side by side behind two norms; one matrix of queries, keys and values",
    "stablelm": "norms with biases; numbers of heads as attributes",
    "nemotron": "an MLP of two matrices",
    "glm4": "four norms; gate and up in one matrix",
    "lfm2": "convolutions in place of some attentions",
    "bloom": "residual additions within attention and MLP; blocks that yield more than the state",
    "granitemoe": "mixtures of experts; multipliers",
}
"""Types without a family of their own, and what their blocks are like."""

LONG = {"stablelm", "nemotron", "glm4", "granitemoe", "bloom"}
OTHER = [name for name in TYPES if name != "phi"]
RNG = np.random.default_rng(0)
LOAD = """
import sys
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM
folder, again = sys.argv[1:]
batch = load_file("batch.safetensors")["batch"]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
body = AutoModel.from_pretrained(folder, trust_remote_code=True)
states = body(batch).last_hidden_state
save_file({"logits": model(batch).logits, "states": states}, "found.safetensors")
model.save_pretrained(again, save_original_format=False)
assert "evocompress" not in sys.modules
"""
PARAMETERS = [pytest.param(t, marks=pytest.mark.long) if t in LONG else t for t in TYPES]


@pytest.fixture(params=PARAMETERS)
def loaded(request: pytest.FixtureRequest) -> LoadedModel:
    found = windowless(request.param)
    assert isinstance(found.family, Derived)
    return found


@pytest.fixture
def olmo2() -> LoadedModel:
    return windowless("olmo2")


class TestDerived(FormatContract):
    @pytest.fixture
    def format(self) -> str:
        return "hf"

    def written(self, loaded: LoadedModel, able: list[str]) -> list[str]:
        assert able[-1] == "biased"
        return able if loaded.family.model_type == "olmo2" else ["lacking", "biased"]


def written(loaded: LoadedModel, out: Path) -> Path:
    """A checkpoint of which each block is another, and the second one gone."""
    return write(loaded, candidate_of(loaded, with_zeros(loaded, with_bias(loaded))), out, "hf")


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def test_costs_are_exactly_those_of_the_cost_model(loaded: LoadedModel, tmp_path: Path) -> None:
    candidate = candidate_of(loaded, uneven(loaded) | random_levels(loaded, RNG))
    record = read_record(write(loaded, candidate, tmp_path / "out", "hf"))
    family, model = loaded.family, loaded.model
    costs = cost_model(family.units(model), family.architecture(model)).of([candidate])
    assert record.measured == {name: costs[name].item() for name in record.measured}


@pytest.mark.parametrize("gone", [(0,), (1, 3)])
def test_blocks_that_are_left_share_what_they_did(gone: tuple[int, ...], tmp_path: Path) -> None:
    """Also without the block that the class names first, or with one alone."""
    types = ["hybrid", "hybrid", "linear_attention", "hybrid"]
    config = CONFIG_MAPPING["zamba"](layers_block_type=types, num_hidden_layers=4)
    loaded = typical_loaded(config, 4)
    loaded.model.float()
    loaded.model.config.dtype = torch.float32
    candidate = candidate_of(loaded, {f"{index}.attention": DROP for index in gone})
    out = write(loaded, candidate, tmp_path / "out", "hf")
    record, family = read_record(out), loaded.family
    units, architecture = family.units(loaded.model), family.architecture(loaded.model)
    costs = cost_model(units, architecture).of([candidate])
    assert record.measured == {name: costs[name].item() for name in record.measured}
    model = reload(out)
    batch = random_ids()
    expected = in_memory(loaded, candidate, batch)
    torch.testing.assert_close(model(batch).logits, expected, rtol=1e-4, atol=1e-4)
    left = [block.shared_transf for i in (0, 1, 3) if i not in gone for block in [body(model)[i]]]
    assert len({id(one.self_attn.q_proj.weight) for one in left}) == 1
    assert model.num_parameters() == record.measured["params"]


@pytest.mark.parametrize("gone", [(), (0,)])
def test_what_blocks_share_is_stored_once(gone: tuple[int, ...], tmp_path: Path) -> None:
    """Narrower, also without the block whose units its matrices are; and healed once."""
    types = ["hybrid", "hybrid", "linear_attention", "hybrid"]
    config = CONFIG_MAPPING["zamba"](layers_block_type=types, num_hidden_layers=4)
    loaded = typical_loaded(config, 4)
    loaded.model.float()
    loaded.model.config.dtype = torch.float32
    narrow = {"0.attention": Level(kv_groups=2, group_heads=1), "0.mlp": Level(channels=24)}
    candidate = candidate_of(loaded, narrow | {f"{index}.attention": DROP for index in gone})
    out, batch = write(loaded, candidate, tmp_path / "out", "hf"), random_ids()
    record, model = read_record(out), reload(out)
    predicted = costs_of(loaded).of([candidate])
    assert record.measured == {name: predicted[name].item() for name in record.measured}
    expected = in_memory(loaded, candidate, batch)
    torch.testing.assert_close(model(batch).logits, expected, rtol=1e-4, atol=1e-4)
    student = load_student(out, loaded)
    assert sum(one.numel() for one in student.parameters()) == record.measured["params"]
    again = costs_of(load(str(out))).dense()
    assert all(again[name] == predicted[name].item() for name in again)


def costs_of(loaded: LoadedModel) -> CostModel:
    """The costs of a model."""
    units = loaded.family.units(loaded.model)
    return cost_model(units, loaded.family.architecture(loaded.model))


def body(model: PreTrainedModel) -> Any:
    """The blocks of a language model."""
    return model.base_model.layers


@pytest.mark.parametrize("name", ["granitemoe", pytest.param("aria_text", marks=pytest.mark.long)])
def test_dropped_experts_are_gone(name: str, tmp_path: Path) -> None:
    loaded = windowless(name)
    mixture = loaded.family.at(0).mixture
    assert mixture is not None
    experts = [unit.name for unit in loaded.family.units(loaded.model) if unit.kind == "expert"]
    gone = {one.removeprefix("model.layers."): DROP for one in experts if one.endswith(".2")}
    candidate = candidate_of(loaded, uneven(loaded) | gone)
    out = write(loaded, candidate, tmp_path / "out", "hf")
    assert_written(out, loaded, candidate)
    edits = config_of(out)["per_layer_config"]["0"]["edits"]
    assert edits["experts"] == {mixture.experts: [len(experts) // 4 - 1, 100]}
    again = load(str(out), device="cpu").family.at(0).mixture
    assert again is not None and again.count == len(experts) // 4 - 1


def test_a_family_of_another_package_is_written(tmp_path: Path) -> None:
    class Olmo(Family):
        model_type = "olmo"

    loaded = replace(windowless("olmo"), family=Olmo())
    candidate = candidate_of(loaded, with_bias(loaded))
    assert_written(write(loaded, candidate, tmp_path / "out", "hf"), loaded, candidate)


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        # Sub-layers that add to the residual stream themselves.
        ("bloom", ("0.attention", "1.mlp")),
        # The output of one is added to that of the other in its place.
        ("falcon", ("0.attention", "1.mlp")),
        # Blocks that ask their norm for a type of number.
        ("mamba2", ("1.attention",)),
    ],
)
def test_sublayers_that_are_taken_out_in_unusual_ways(
    name: str, gone: Sequence[str], tmp_path: Path
) -> None:
    loaded = typical_loaded(typical_config(name))
    candidate = candidate_of(loaded, dict.fromkeys(gone, DROP))
    assert_written(write(loaded, candidate, tmp_path / "out", "hf"), loaded, candidate)


def test_layers_may_differ_in_transformers_already(tmp_path: Path) -> None:
    types = ["sliding_attention", "full_attention"] * 2
    config = AutoConfig.for_model("gemma4_text", layer_types=types, num_hidden_layers=4)
    loaded = typical_loaded(config, 4)
    widths = {layer.head_dim for layer in loaded.model.config.per_layer_config}
    assert len(widths) == 2
    candidate = candidate_of(loaded, {"0.attention": DROP, "2.mlp": Level(channels=40)})
    out = write(loaded, candidate, tmp_path / "first", "hf")
    assert_written(out, loaded, candidate)
    again = load(str(out), device="cpu")
    candidate = candidate_of(again, {"3.attention": DROP, "2.mlp": Level(channels=20)})
    assert_written(write(again, candidate, tmp_path / "second", "hf"), again, candidate)


def cached_bytes(model: PreTrainedModel, ids: Tensor) -> int:
    """Bytes of all keys and values that a model keeps of tokens (1, S)."""
    layers = model(ids, use_cache=True).past_key_values.layers
    tensors = (t for one in layers if one.keys is not None for t in (one.keys, one.values))
    return sum(tensor.nbytes for tensor in tensors)


def test_keys_and_values_that_others_read_are_kept_once(tmp_path: Path) -> None:
    """Also where a block that stores nothing and one that reads have lost their attention."""
    loaded = typical_loaded(typical_config("gemma4_text sharing"))
    family, model, ids = loaded.family, loaded.model, random_ids(1)
    levels = {"0.attention": DROP, "4.attention": DROP, "3.mlp": Level(channels=40)}
    candidate = candidate_of(loaded, levels)
    architecture = family.architecture(model)
    costs = cost_model(family.units(model), architecture, length=ids.numel())
    counted = costs.of([Candidate(), candidate])["kv_bytes"]
    out = write(loaded, candidate, tmp_path / "out", "hf")
    assert_written(out, loaded, candidate)
    written = load(str(out), device="cpu")
    assert [*counted] == [cached_bytes(model, ids), cached_bytes(written.model, ids)]
    assert isinstance(written.family, Derived) and isinstance(family, Derived)
    assert written.family.limits == family.limits
    again = candidate_of(written, {"5.attention": DROP})
    assert_written(write(written, again, tmp_path / "again", "hf"), written, again)


def test_queries_of_another_blocks_head_are_cut(tmp_path: Path) -> None:
    """Where all queries share one key-value head, also those that read it in another block."""
    loaded = typical_loaded(typical_config("gemma4_text sharing one head"))
    cut = {"0.attention": Level(kv_groups=1, group_heads=4)}
    candidate = candidate_of(loaded, cut | {"2.attention": Level(kv_groups=1, group_heads=2)})
    assert_written(write(loaded, candidate, tmp_path / "out", "hf"), loaded, candidate)


def test_it_can_be_copied_pickled_and_saved_again(loaded: LoadedModel, tmp_path: Path) -> None:
    out = written(loaded, tmp_path / "out")
    model, batch = reload(out), random_ids()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other) is type(model) and type(other.config) is type(model.config)
        assert_equal(other(batch).logits, model(batch).logits)
    model.save_pretrained(tmp_path / "again", save_original_format=False)
    assert config_of(tmp_path / "again") == config_of(out)
    assert_equal(reload(tmp_path / "again")(batch).logits, model(batch).logits)


@pytest.mark.parametrize("name", ["phi", *(pytest.param(t, marks=pytest.mark.long) for t in OTHER)])
def test_a_checkpoint_is_one_graph(name: str, tmp_path: Path) -> None:
    loaded = windowless(name)
    levels = uneven(loaded) | {"0.attention": DROP, "3.mlp": DROP}
    out = write(loaded, candidate_of(loaded, levels), tmp_path / "out", "hf")
    model, batch = reload(out).requires_grad_(False), random_ids()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(batch)[0], model(batch)[0])


@pytest.mark.long
def test_its_code_loads_it_without_the_package(olmo2: LoadedModel, tmp_path: Path) -> None:
    out, batch = written(olmo2, tmp_path / "out"), random_ids()
    save_file({"batch": batch}, tmp_path / "batch.safetensors")
    command = [sys.executable, "-c", LOAD, "out", "again"]
    subprocess.run(command, check=True, cwd=tmp_path, timeout=240)
    found = load_file(tmp_path / "found.safetensors")
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(found["logits"], reload(out)(batch).logits, **close)
    body = AutoModel.from_pretrained(out)
    torch.testing.assert_close(found["states"], body(batch).last_hidden_state, **close)
    assert config_of(tmp_path / "again") == config_of(out)
    assert {p.name for p in (tmp_path / "again").glob("*.py")} == {
        "modeling_derived.py",
        "layers.py",
    }


def test_a_block_without_sub_layers_has_no_weights(olmo2: LoadedModel, tmp_path: Path) -> None:
    model: Any = reload(written(olmo2, tmp_path / "out"))
    block = model.model.layers[1]
    assert not list(block.parameters())
    hidden = torch.ones(1, 2, 64)
    assert block(hidden) is hidden


@pytest.mark.parametrize("gone", ["0", "0.attention"])
def test_a_cache_made_without_the_config_is_refused(
    gone: str, olmo2: LoadedModel, tmp_path: Path
) -> None:
    model: Any = reload(write(olmo2, candidate_of(olmo2, {gone: DROP}), tmp_path / "out", "hf"))
    with pytest.raises(ValueError, match="layer 0 has no attention"):
        model(random_ids(), past_key_values=DynamicCache(), use_cache=True)


def test_modules_have_their_own_settings_and_the_models_kernel(tmp_path: Path) -> None:
    loaded = tiny_loaded("phi3", layers=4)
    assert loaded.family.kinds[0].parts["attention"].settings.config
    candidate = candidate_of(loaded, with_bias(loaded))
    out = write(loaded, candidate, tmp_path / "out", "hf")
    assert config_of(out)["model_type"] == "evocompress_derived"
    model: Any = reload(out)
    assert_equal(model(random_ids()).logits, in_memory(loaded, candidate, random_ids()))
    model.set_attn_implementation("eager")
    kernels = {m.config._attn_implementation for m in model.modules() if hasattr(m, "config")}
    assert kernels == {"eager"}


@pytest.mark.parametrize("name", ["phi", "olmo2"])
def test_it_can_be_compressed_again(name: str, tmp_path: Path) -> None:
    dense = windowless(name)
    first = load(str(written(dense, tmp_path / "first")), device="cpu")
    assert first.family.at(0).attention == dense.family.at(0).attention
    gone = {unit.name for unit in dense.family.units(dense.model)} - {
        unit.name for unit in first.family.units(first.model)
    }
    assert "model.layers.1" in gone and "model.layers.3.attention" in gone
    levels = {"0.attention": Level(kv_groups=1, group_heads=1), "0.mlp": Level(channels=30)}
    candidate = candidate_of(first, levels | {"2.attention": DROP})
    out = write(first, candidate, tmp_path / "second")
    assert read_record(out).format == "hf"
    assert_written(out, first, candidate)


@pytest.mark.parametrize("name", [None, "NoSuchForCausalLM"])
def test_an_unknown_class_is_named(name: str | None, olmo2: LoadedModel, tmp_path: Path) -> None:
    out = written(olmo2, tmp_path / "out")
    config = config_of(out) | {"dense_class": name, "architectures": [f"Evocompress{name}"]}
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"dense_class {name!r} is no class of transformers"):
        AutoConfig.from_pretrained(out)
    with pytest.raises(ModelError, match="names no class in architectures that transformers"):
        load(str(out), device="cpu")


def test_transformers_is_told_of_the_class_in_time(
    olmo2: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = written(olmo2, tmp_path / "out")
    monkeypatch.delitem(CONFIG_MAPPING._extra_content, "evocompress_derived")
    load(str(out), device="cpu")


def test_the_module_has_no_other_names() -> None:
    for name in ("EvocompressNoSuchModel", "Olmo2Model", "Evocompresstorch"):
        assert not hasattr(modeling_derived, name)
