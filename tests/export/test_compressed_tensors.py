"""Format ``compressed-tensors``: words and scales in the place of weights."""

import json
import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from evocompress.compression.library import build_library
from evocompress.compression.live_model import LiveModel
from evocompress.core.config import LibraryConfig, SpaceConfig
from evocompress.core.errors import ConfigError, ExportError
from evocompress.core.space_config import BitsSpace
from evocompress.core.types import DENSE, DROP, Candidate, Level
from evocompress.export import choose_for, materialize
from evocompress.export.formats import file_layout_of, obstacle_of, type_rules_of
from evocompress.export.record import read_record
from evocompress.models.families.outer import every_unit
from evocompress.models.loading import load
from evocompress.pipeline.planning.forewarning import missing_types
from evocompress.space import sampling
from evocompress.space.build import build_space
from evocompress.space.costs import cost_model
from evocompress.testing.tiny import tiny_checkpoint, tiny_loaded

TYPES = ("w4g32", "w3g32", "w8g64", "w8a8", "w4g32z")
MLP = "model.layers.1.mlp"
NARROW = Level(channels=64)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    loaded = load(str(tiny_checkpoint(folder / "model", "llama")))
    matrices = [u.name for u in loaded.family.units(loaded.model) if u.kind == "matrix"]
    wanted = {name: [DENSE, *(Level(bits=kind) for kind in TYPES)] for name in matrices}
    wanted[MLP] = [DENSE, NARROW]
    tokens = torch.randint(1, 250, (8, 32), generator=torch.Generator().manual_seed(0))
    config = LibraryConfig(width_criterion="magnitude")
    library = build_library(loaded, wanted, tokens, "tokens", config, folder / "library", batch=4)
    levels = {name: Level(bits=TYPES[i % 3]) for i, name in enumerate(matrices)}
    return loaded, library, levels


def candidate_of(levels):
    below = tuple(f"{name}." for name, level in levels.items() if level.drop) or ("-",)
    kept = {name: lv for name, lv in levels.items() if not f"{name}.".startswith(below)}
    return Candidate(tuple(sorted(kept.items())))


def unpacked(words, bits, count):
    """Bit by bit: one after the other, the first in the lowest bits."""
    rows = []
    for row in words.tolist():
        whole = sum((word & 0xFFFFFFFF) << (32 * place) for place, word in enumerate(row))
        rows.append([(whole >> (place * bits)) & (2**bits - 1) for place in range(count)])
    return torch.tensor(rows)


def read_back(folder):
    """The weights of a checkpoint, as the schemes of its config say."""
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "compressed-tensors"
    schemes = {
        target: group["weights"]
        for group in config["config_groups"].values()
        for target in group["targets"]
    }
    tensors = load_file(folder / "model.safetensors")
    found = {}
    for name, scheme in schemes.items():
        assert f"{name}.weight" not in tensors and scheme["symmetric"]
        rows, columns = tensors[f"{name}.weight_shape"].tolist()
        scale, bits = tensors[f"{name}.weight_scale"].float(), scheme["num_bits"]
        assert scale.shape == (rows, columns // scheme["group_size"])
        codes = unpacked(tensors[f"{name}.weight_packed"], bits, columns) - 2 ** (bits - 1)
        found[f"{name}.weight"] = codes * scale.repeat_interleave(scheme["group_size"], 1)
    return found, tensors


@pytest.mark.parametrize("changes", [{}, {MLP: NARROW, "model.layers.2.attention": DROP}], ids=len)
def test_words_are_read_back_as_the_rounded_weights(made, changes, tmp_path):
    loaded, library, levels = made
    candidate = candidate_of(levels | changes)
    out = materialize(loaded, library, candidate, tmp_path / "out", format="compressed-tensors")
    rounded = "hf" if changes else "stock"
    plain = materialize(loaded, library, candidate, tmp_path / "plain", format=rounded)
    found, tensors = read_back(out)
    expected = load_file(plain / "model.safetensors")
    assert len(found) == sum(1 for _, level in candidate.levels if level.bits)
    for name, weight in found.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-3, atol=1e-6)
    rest = {name: tensor for name, tensor in expected.items() if name not in found}
    assert rest and all(torch.equal(tensors[name], tensor) for name, tensor in rest.items())


@pytest.mark.parametrize("every", [1, 2])
def test_integers_of_a_byte_are_read_back_and_their_inputs_are_rounded(made, every, tmp_path):
    loaded, library, levels = made
    typed = {n: Level(bits="w8a8") for i, n in enumerate(levels) if i % every == 0}
    candidate = candidate_of(levels | typed | {MLP: NARROW})
    out = materialize(loaded, library, candidate, tmp_path / "out", format="compressed-tensors")
    plain = materialize(loaded, library, candidate, tmp_path / "plain", format="hf")
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    assert config["format"] == ("mixed-precision" if every == 2 else "int-quantized")
    (group,) = (g for g in config["config_groups"].values() if g["format"] == "int-quantized")
    eight = {"num_bits": 8, "type": "int", "symmetric": True}
    assert group["weights"] == eight | {"strategy": "channel", "dynamic": False}
    assert group["input_activations"] == eight | {"strategy": "token", "dynamic": True}
    assert set(group["targets"]) == typed.keys()
    tensors, expected = (load_file(p / "model.safetensors") for p in (out, plain))
    for name in typed:
        integers, scales = tensors[f"{name}.weight"], tensors[f"{name}.weight_scale"]
        assert integers.dtype == torch.int8 and scales.shape == (len(integers), 1)
        assert torch.equal(integers.float() * scales.float(), expected[f"{name}.weight"])
        assert f"{name}.weight_shape" not in tensors


def test_refused_by_name(made, tmp_path):
    loaded, library, levels = made
    name = next(iter(levels))
    cases = {
        "has no zero points, as w4g32z of": levels | {name: Level(bits="w4g32z")},
        "has llama.cpp's type q8_0": levels | {name: Level(bits="q8_0")},
    }
    for message, changed in cases.items():
        with pytest.raises(ExportError, match=message):
            out = tmp_path / "out"
            materialize(loaded, library, candidate_of(changed), out, format="compressed-tensors")
    assert not (tmp_path / "out").exists()


def test_transformers_generates_the_same(made, tmp_path):
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModelForCausalLM

    loaded, library, levels = made
    candidate = candidate_of(levels | {MLP: NARROW, "model.layers.2.attention": DROP})
    ids = torch.arange(1, 30)[None]
    logits = []
    for form in ("hf", "compressed-tensors"):
        out = materialize(loaded, library, candidate, tmp_path / form, format=form)
        model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
        logits.append(model(ids).logits)
    torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-4)


def test_a_head_is_packed_and_an_embedding_is_not(tmp_path):
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModelForCausalLM

    loaded = load(str(tiny_checkpoint(tmp_path / "model", "qwen3")))
    names, typed = ("lm_head", "model.embed_tokens"), Level(bits="w4g32")
    wanted = dict.fromkeys(names, [DENSE, typed])
    tokens = torch.randint(1, 250, (8, 32), generator=torch.Generator().manual_seed(0))
    config, path = LibraryConfig(), tmp_path / "library"
    library = build_library(loaded, wanted, tokens, "tokens", config, path, batch=4)
    head, form = Candidate(((names[0], typed),)), "compressed-tensors"
    out = materialize(loaded, library, head, tmp_path / "head", format=form)
    assert read_back(out)[0].keys() == {"lm_head.weight"}
    ids = torch.arange(1, 30)[None]
    with LiveModel(loaded, library) as live:
        live.apply(head)
        expected = loaded.model(ids).logits
    model = AutoModelForCausalLM.from_pretrained(out)
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-3, atol=1e-4)
    both = Candidate(tuple((name, typed) for name in names))
    with pytest.raises(ExportError, match="packs linear layers, and model.embed_tokens is a Emb"):
        materialize(loaded, library, both, tmp_path / "both", format=form)
    for fits in (form, "compressed-tensors-vllm"):
        assert type_rules_of(fits, loaded, uneven=True).untyped == {"model.embed_tokens"}


def test_experts_are_refused_by_name():
    loaded = tiny_loaded("qwen2_moe")
    name = "model.layers.1.mlp.experts.2.up_proj"
    candidate = Candidate(((name, Level(bits="w4g32")),))
    obstacle = obstacle_of("compressed-tensors", loaded, candidate)
    assert obstacle is not None and "is of an expert: transformers has one tensor" in obstacle
    rules = type_rules_of("compressed-tensors", loaded, uneven=False)
    assert name in rules.untyped and "model.layers.1.self_attn.q_proj" not in rules.untyped


@pytest.mark.parametrize(
    ("model_type", "inside"), [("opt", "fc1"), ("qwen2_moe", "mlp.shared_expert.up_proj")]
)
def test_tokens_in_one_matrix_have_no_scales_of_their_own_in_transformers(model_type, inside):
    loaded = tiny_loaded(model_type)
    block = loaded.family.block_names[1]
    attention = next(m.path for m in loaded.family.matrices if m.sublayer == "attention")
    cases = [(inside, "w8a8", True), (inside, "w8g32", False), (attention, "w8a8", False)]
    for path, kind, refused in cases:
        candidate = Candidate(((f"{block}.{path}", Level(bits=kind)),))
        reason = obstacle_of("compressed-tensors", loaded, candidate) or ""
        assert ("reads all tokens in one matrix: compressed-tensors 0.20" in reason) is refused
        reason = obstacle_of("compressed-tensors-vllm", loaded, candidate) or ""
        assert "in one matrix" not in reason
    assert not any(module._forward_pre_hooks for module in loaded.model.modules())


def same_input(loaded, name):
    """What vLLM makes one tensor of, by the names that it has for llama."""
    stem, _, last = name.rpartition(".")
    for fused in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")):
        if last in fused:
            return {f"{stem}.{each}" for each in fused}
    return {name}


def test_vllm_has_one_type_for_what_reads_one_input(made):
    loaded, *_ = made
    rules = type_rules_of("compressed-tensors-vllm", loaded, uneven=True)
    matrices = [u.name for u in loaded.family.units(loaded.model) if u.kind == "matrix"]
    for name in matrices:
        word = rules.tied.get(name, name)
        found = {other for other in matrices if rules.tied.get(other, other) == word}
        assert found == same_input(loaded, name)
    assert rules.untyped == {"model.embed_tokens"}


def test_experts_of_vllm_have_no_types_and_what_is_beside_them_has():
    loaded = tiny_loaded("qwen2_moe")
    rules = type_rules_of("compressed-tensors-vllm", loaded, uneven=False)
    assert "model.layers.1.mlp.experts.2.up_proj" in rules.untyped
    assert "model.layers.1.self_attn.q_proj" in rules.tied.keys() - rules.untyped


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ({"q": "w3g32", "k": "w3g32", "v": "w3g32"}, "has no kernel for 3 bits, only 4 and 8"),
        ({"q": "w4g32", "k": "w8g32", "v": "w4g32"}, "q_proj and .*k_proj in w4g32 and w8g32"),
        ({"q": "w4g32", "k": "w4g32"}, "q_proj and .*v_proj in w4g32 and dense, because vLLM"),
        ({"q": "w8g32", "k": "w8a8", "v": "w8g32"}, "q_proj and .*k_proj in w8g32 and w8a8"),
        ({"q": "w8g32", "k": "w8g32", "v": "w8g32", "o": "w4g64"}, None),
        ({"q": "w8a8", "k": "w8a8", "v": "w8a8", "o": "w4g64"}, None),
    ],
)
def test_what_vllm_cannot_hold_is_said_and_written_otherwise(made, kinds, message):
    loaded, *_ = made
    named = {f"model.layers.1.self_attn.{k}_proj": Level(bits=v) for k, v in kinds.items()}
    candidate = candidate_of(named)
    choice = choose_for(loaded, candidate, "vllm")
    reason = obstacle_of("compressed-tensors-vllm", loaded, candidate)
    if message is None:
        assert reason is None and choice.name == "compressed-tensors-vllm"
    else:
        assert reason is not None and re.search(message, reason)
        assert choice.name == "stock" and reason in choice.reason


def test_parts_that_are_gone_need_no_types(made):
    loaded, *_ = made
    types = {f"model.layers.1.mlp.{name}_proj": Level(bits="w4g32") for name in ("gate", "up")}
    gone = {f"model.layers.{index}.attention": DROP for index in (1, 2)}
    candidate = candidate_of(types | gone)
    assert obstacle_of("compressed-tensors-vllm", loaded, candidate) is None
    assert choose_for(loaded, candidate, "vllm").name == "compressed-tensors-vllm"


def space_of(loaded, **config):
    units = loaded.family.units(loaded.model)
    form = "compressed-tensors-vllm"
    rules = type_rules_of(form, loaded, uneven=True)
    return build_space(
        units,
        loaded.family.architecture(loaded.model),
        SpaceConfig.model_validate(config | {"fits": form}),
        obstacle=partial(obstacle_of, form, loaded),
        tied=rules.tied,
        untyped=rules.untyped,
    )


def test_the_space_for_vllm_has_what_it_stores(made):
    loaded, *_ = made
    bits = {"types": ["w8g32", "w4g32", "w3g32", "w4g64z"]}
    space = space_of(loaded, bits=bits, drop={})
    typed = [i for i, levels in enumerate(space.levels) if any(lv.bits for lv in levels)]
    assert {len(space.encoding.members[i]) for i in typed} == {1, 2, 3}
    assert {lv.bits for i in typed for lv in space.levels[i]} <= {"", "w8g32", "w4g32"}
    assert [*missing_types(BitsSpace(**bits), space, "it")] == [
        "space.bits: w4g64z, w3g32: no matrix can have such a type in format 'it'"
    ]
    rng = np.random.default_rng(0)
    for _ in range(30):
        candidate = space.candidate(sampling.random(space, rng))
        assert obstacle_of("compressed-tensors-vllm", loaded, candidate) is None
    with pytest.raises(ConfigError, match="no kernel for 3 bits.*it can hold none of these types"):
        space_of(loaded, bits={"types": ["dense", "w3g32"]}, drop={})


@pytest.mark.parametrize("changes", [{}, {MLP: NARROW, "model.layers.2.attention": DROP}], ids=len)
@pytest.mark.parametrize("typed", ["groups", "bytes", ""])
def test_the_size_of_a_file_is_foretold(made, changes, typed, tmp_path):
    """To a thousandth, but for digits in the header, which is no small part of so small a file."""
    loaded, library, levels = made
    levels = dict.fromkeys(levels, Level(bits="w8a8")) if typed == "bytes" else levels
    candidate = candidate_of((levels if typed else {}) | changes)
    form = "compressed-tensors" if typed else "hf"
    architecture = loaded.family.architecture(loaded.model)
    model = cost_model(
        every_unit(loaded.family, loaded.model),
        replace(architecture, dtype_bytes=4),
        file=file_layout_of(form, loaded, uneven=True),
    )
    told = {"file_bytes": model.of([candidate])["file_bytes"].item()}
    out = materialize(loaded, library, candidate, tmp_path / "out", format=form, predicted=told)
    size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    assert read_record(out).measured["file_bytes"] == size
    header = len(list(loaded.model.parameters())) * 3 * 100
    assert abs(told["file_bytes"] - size) < 1e-3 * size + 0.05 * header
