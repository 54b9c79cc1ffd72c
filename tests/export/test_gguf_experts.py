"""Format ``gguf`` of Gemma 4 with experts, which lie in the block beside a dense MLP."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from export_cases import write
from gguf import GGUFReader
from transformers import PreTrainedModel

from evocompress.core.types import DROP, Level
from evocompress.export import FORMATS, read_record
from evocompress.export.weights import with_fused_experts
from evocompress.models.loading import LoadedModel
from evocompress.space.costs import cost_model
from evocompress.testing.formats import LevelsByEnd, candidate_of, with_zeros
from evocompress.testing.gguf_types import gguf_loaded

FEWER = {f"{block}.experts.{gone}": DROP for block, gone in enumerate((3, 0, 2))}
NARROW = {f"{block}.mlp": Level(channels=16) for block in range(3)}
HEADS = {"1.attention": Level(kv_groups=1, group_heads=3)}


@pytest.fixture(scope="module")
def mixture() -> LoadedModel:
    return gguf_loaded("gemma4_text mixture")


def levels_of(loaded: LoadedModel, name: str) -> LevelsByEnd:
    each = {"dense": {}, "fewer": FEWER, "narrow and uneven": FEWER | NARROW | HEADS}
    return with_zeros(loaded, {}) if name == "zeros" else each[name]


@pytest.mark.parametrize("name", ["dense", "zeros", "fewer", "narrow and uneven"])
@pytest.mark.parametrize("inputs", [0, 16], ids=["plain", "with inputs of each layer"])
def test_costs_in_the_file_are_those_predicted(name: str, inputs: int, tmp_path: Path) -> None:
    loaded = gguf_loaded("gemma4_text mixture", hidden_size_per_layer_input=inputs)
    candidate = candidate_of(loaded, levels_of(loaded, name))
    record = read_record(write(loaded, candidate, tmp_path / "out", "gguf"))
    costs = cost_model(loaded.family.units(loaded.model), loaded.family.architecture(loaded.model))
    found = costs.of([candidate])
    assert record.measured == {key: found[key].item() for key in record.measured}


def test_experts_are_written_as_transformers_holds_them(
    mixture: LoadedModel, tmp_path: Path
) -> None:
    out = write(mixture, candidate_of(mixture, {}), tmp_path / "out", "gguf")
    tensors = {t.name: torch.tensor(t.data) for t in GGUFReader(out / "model.gguf").tensors}
    whole: PreTrainedModel = with_fused_experts(mixture.model)
    places = {
        "ffn_gate_up_exps.weight": "experts.gate_up_proj",
        "ffn_down_exps.weight": "experts.down_proj",
        "ffn_down_exps.scale": "router.per_expert_scale",
        "ffn_gate_inp.weight": "router.proj.weight",
    }
    for place, name in places.items():
        expected = whole.get_parameter(f"model.layers.1.{name}")
        torch.testing.assert_close(tensors[f"blk.1.{place}"], expected.data, rtol=0, atol=0)
    assert not any(
        "_gate_exps" in name or "_up_exps" in name.replace("gate_up", "") for name in tensors
    )


def test_the_file_tells_how_many_experts_there_are(mixture: LoadedModel, tmp_path: Path) -> None:
    candidate = candidate_of(mixture, levels_of(mixture, "narrow and uneven"))
    out = write(mixture, candidate, tmp_path / "out", "gguf")
    fields = {n: f.contents() for n, f in GGUFReader(out / "model.gguf").fields.items()}
    sizes = ("expert_count", "expert_used_count", "expert_feed_forward_length")
    assert [fields[f"gemma4.{size}"] for size in sizes] == [3, 2, 16]
    assert fields["gemma4.feed_forward_length"] == 88
    assert fields["gemma4.attention.head_count"] == [6, 3, 6]


def test_a_layer_without_its_mlp_has_no_experts_either(
    mixture: LoadedModel, tmp_path: Path
) -> None:
    out = write(mixture, candidate_of(mixture, {"1.mlp": DROP}), tmp_path / "out", "gguf")
    names = [t.name for t in GGUFReader(out / "model.gguf").tensors]
    routed = ("ffn_gate_inp", "_exps", "ffw_norm_1", "norm_2")
    having = {name.split(".")[1] for name in names if any(part in name for part in routed)}
    assert having == {"0", "2"} and "blk.1.ffn_down.weight" in names
    assert "an MLP of 32 channels" in (out / "README.md").read_text()


REFUSED = [
    ({"1.experts.0": DROP}, "fewer experts than other blocks"),
    ({"1.mlp": Level(channels=16)}, "model.layers.1.mlp narrower than in other blocks"),
]


@pytest.mark.parametrize(("levels", "why"), REFUSED, ids=["number", "width"])
def test_layers_that_differ_in_their_experts_are_refused(
    mixture: LoadedModel, levels: LevelsByEnd, why: str
) -> None:
    found = FORMATS["gguf"].obstacle(mixture, candidate_of(mixture, levels))
    assert found is not None and why in found
