"""Format ``gguf`` of types that llama.cpp has architectures of their own for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from export_cases import write
from gguf import MODEL_ARCH_NAMES, GGUFReader
from transformers import AutoModelForCausalLM

from evocompress.core.errors import ExportError
from evocompress.core.types import DROP, Level
from evocompress.export import FORMATS, materialize, read_record
from evocompress.export.gguf_architectures import ARCHITECTURES, UNEVEN
from evocompress.export.gguf_tensors import halved, interleaved
from evocompress.export.llama_like import LLAMA_LIKE
from evocompress.models.checkpoints import quiet_transformers
from evocompress.models.loading import LoadedModel
from evocompress.testing.formats import assert_written, candidate_of, in_memory
from evocompress.testing.gguf_reference import GgufReference
from evocompress.testing.gguf_types import (
    GROWING,
    YARN,
    gguf_levels,
    gguf_loaded,
    uneven_gguf_levels,
)
from evocompress.testing.plain_library import PlainLibrary
from evocompress.testing.probes import random_batch

ROTARY = {"rope_type": "default", "rope_theta": 10000.0}

DIFFERING = [name for name in UNEVEN if name not in LLAMA_LIKE and UNEVEN[name].borrowed]

READ = ("starcoder2", "nemotron", "stablelm", "bloom", "minimax_m2")
"""Types of which transformers reads such files as well."""


@pytest.fixture(scope="module")
def qwen3() -> LoadedModel:
    return gguf_loaded("qwen3")


def obstacle(loaded: LoadedModel, levels: dict[str, Level] | None = None) -> str | None:
    return FORMATS["gguf"].obstacle(loaded, candidate_of(loaded, levels or {}))


@pytest.mark.parametrize("model_type", READ)
def test_transformers_reads_the_same_model_from_the_file(model_type: str, tmp_path: Path) -> None:
    loaded = gguf_loaded(model_type)
    candidate = candidate_of(loaded, gguf_levels(loaded))
    out = write(loaded, candidate, tmp_path / "out", "gguf")
    with quiet_transformers():
        read = AutoModelForCausalLM.from_pretrained(
            out, gguf_file="model.gguf", dtype=torch.float32, experts_implementation="eager"
        )
    batch = random_batch(loaded.family, loaded.model)
    expected = in_memory(loaded, candidate, batch)
    torch.testing.assert_close(read(batch).logits, expected, rtol=0, atol=1e-4)


def test_rows_are_turned_only_as_far_as_a_head_is_rotated() -> None:
    rows = torch.arange(12.0)[:, None]
    assert interleaved(rows, 6, 4)[:, 0].tolist() == [0, 2, 1, 3, 4, 5, 6, 8, 7, 9, 10, 11]
    rows = torch.arange(16.0)[:, None]
    assert halved(rows, 8, 6)[:8, 0].tolist() == [0, 2, 4, 1, 3, 5, 6, 7]
    assert halved(interleaved(rows, 8, 6), 8, 6).equal(rows)


@pytest.mark.parametrize("tied", [False, True])
def test_a_tied_head_is_written_where_the_architecture_wants_one(
    tied: bool, tmp_path: Path
) -> None:
    loaded = gguf_loaded("stablelm", tie_word_embeddings=tied)
    out = write(loaded, candidate_of(loaded, {}), tmp_path / "out", "gguf")
    tensors = {t.name: t.data for t in GGUFReader(out / "model.gguf").tensors}
    same = (tensors["output.weight"] == tensors["token_embd.weight"]).all()
    assert same == tied
    wide = tensors["output.weight"].size * tied
    held = sum(p.numel() for p in loaded.model.parameters())
    assert read_record(out).measured["params"] == held + wide


def test_sizes_are_those_of_the_layers_left(qwen3: LoadedModel, tmp_path: Path) -> None:
    heads = {f"{i}.attention": Level(kv_groups=2, group_heads=1) for i in range(5)}
    levels = heads | {f"{i}.mlp": Level(channels=16) for i in range(5)} | {"3": DROP}
    out = write(qwen3, candidate_of(qwen3, levels), tmp_path / "out", "gguf")
    fields = {n: f.contents() for n, f in GGUFReader(out / "model.gguf").fields.items()}
    assert fields["general.architecture"] == "qwen3"
    sizes = ("block_count", "attention.head_count", "attention.head_count_kv")
    assert [fields[f"qwen3.{size}"] for size in sizes] == [4, 2, 2]
    assert fields["qwen3.feed_forward_length"] == 16


@pytest.mark.parametrize("model_type", DIFFERING)
def test_layers_that_differ_are_written_as_an_architecture_that_has_them(
    model_type: str, tmp_path: Path
) -> None:
    loaded = gguf_loaded(model_type)
    candidate = candidate_of(loaded, uneven_gguf_levels(loaded))
    out = write(loaded, candidate, tmp_path / "out", "gguf")
    assert GgufReference(out / "model.gguf").architecture == UNEVEN[model_type].name
    assert_written(out, loaded, candidate)


def test_every_layer_s_sizes_are_in_the_arrays(qwen3: LoadedModel, tmp_path: Path) -> None:
    out = write(qwen3, candidate_of(qwen3, uneven_gguf_levels(qwen3)), tmp_path / "out", "gguf")
    metadata = GgufReference(out / "model.gguf").metadata
    whole = qwen3.family.architecture(qwen3.model)
    sizes = ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
    # Where a sub-layer is missing there is one head, or 32 channels, of zeros.
    assert [metadata[f"openelm.{size}"] for size in sizes] == [
        [whole.heads[0], whole.heads[0] // whole.kv_heads[0], 1, whole.heads[4]],
        [whole.kv_heads[0], 1, 1, whole.kv_heads[4]],
        [32, 24, whole.channels[3], 40],
    ]


def test_layers_of_gemma_4_that_differ_keep_its_architecture(tmp_path: Path) -> None:
    loaded = gguf_loaded("gemma4_text")
    out = write(loaded, candidate_of(loaded, uneven_gguf_levels(loaded)), tmp_path / "out", "gguf")
    fields = {n: f.contents() for n, f in GGUFReader(out / "model.gguf").fields.items()}
    sizes = ("head_count", "head_count_kv", "shared_kv_layers", "key_length", "key_length_swa")
    # The fourth layer has no attention, and one of zeros that reads two key-value heads.
    found = [fields[f"gemma4.attention.{size}"] for size in sizes]
    assert found == [[6, 6, 6, 2, 6, 6], 2, 3, 32, 16]
    assert fields["gemma4.feed_forward_length"] == [32, 24, 88, 176, 40, 176]
    built = sum(p.numel() for n, p in loaded.model.named_parameters() if "layers.5." in n)
    tensors = {t.name: int(t.n_elements) for t in GGUFReader(out / "model.gguf").tensors}
    own = (n for n in tensors if n.startswith("blk.5.") and "output_scale" not in n)
    assert sum(tensors[name] for name in own) == built
    assert "attention of one head of zeros" in (out / "README.md").read_text()


def test_multipliers_are_in_the_weights_of_layers_that_differ(tmp_path: Path) -> None:
    granite = gguf_loaded("granite")
    files = [
        write(granite, candidate_of(granite, levels), tmp_path / name, "gguf") / "model.gguf"
        for name, levels in {"alike": {}, "differing": {"2.mlp": DROP}}.items()
    ]
    alike, differing = (GgufReference(file).metadata for file in files)
    told = ["multipliers" in (file.parent / "README.md").read_text() for file in files]
    assert told == [False, True]
    epsilon = "attention.layer_norm_rms_epsilon"
    assert alike["granite.residual_scale"] == pytest.approx(0.4)
    assert "deci.residual_scale" not in differing
    assert differing[f"deci.{epsilon}"] == pytest.approx(alike[f"granite.{epsilon}"] / 36)


SLIDING, FULL = "sliding_attention", "full_attention"
UNTIED = {"tie_word_embeddings": False}
BIASED = Level(channels=16, bias=True)
GROUPED = {"topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 1}
UNSCALED = {**YARN, "mscale": None, "mscale_all_dim": None}
HALF = {"mscale": 0.5, "mscale_all_dim": 0.5}
EXPERTS = ["linear_attention", "moe", "full_attention", "mlp"]
PARTIAL = {"rope_parameters": ROTARY | {"partial_rotary_factor": 0.5}}

OTHERS: list[tuple[str, dict[str, Level], dict[str, Any], str]] = [
    ("olmo2", {"2.mlp": Level(channels=16)}, {}, "model.layers.2.mlp narrower than in other"),
    ("olmo2", {"2.mlp": DROP}, {}, "cannot leave out model.layers.2.mlp alone"),
    ("mixtral", {"2.mlp.experts.0": DROP}, {}, "give model.layers.2.mlp fewer experts than other"),
    ("qwen3", {"2.mlp": DROP}, UNTIED, "cannot hold layers that differ of this qwen3 model, whose"),
    ("qwen3", {"2.mlp": BIASED}, {}, "cannot give the output of model.layers.2.mlp a bias"),
    ("granite", {"0.attention": DROP}, {}, "llama.cpp needs one in the first layer"),
    ("phi3", {"2.mlp": DROP}, PARTIAL, "whose heads are rotated in part"),
    ("qwen3", {}, {"hidden_act": "gelu"}, "with whose hidden_act = 'gelu' llama.cpp was not tried"),
    ("starcoder2", {}, {"sliding_window": 8}, "whose attention window is 8 tokens"),
    ("smollm3", {"0": DROP}, {}, "not every 4th of its layers"),
    ("falcon_h1", {}, {"mamba_rms_norm": True}, "with whose mamba_rms_norm = True llama.cpp was"),
    ("falcon_h1", {"1.attention": DROP}, {}, "cannot leave out model.layers.1.attention alone"),
    ("gemma2", {}, {"query_pre_attn_scalar": 24}, "whose query_pre_attn_scalar is 24"),
    ("gemma2", {}, {"final_logit_softcapping": None}, "final_logit_softcapping = None llama.cpp"),
    ("gemma4_text", {}, {"num_kv_shared_layers": 2}, "not a sliding_attention and a full_att"),
    ("qwen3_next", {"2": DROP}, {}, "with an attention would not be equally far apart"),
    ("gemma2", {}, {"tie_word_embeddings": False}, "whose head is not its embedding"),
    ("lfm2", {"0": DROP, "1": DROP, "3": DROP}, {}, "needs a layer with another mixer"),
    ("lfm2_moe", {}, {"routed_scaling_factor": 2.0}, "whose routed_scaling_factor = 2.0 llama.cpp"),
    ("granitemoehybrid", {}, {"mamba_n_groups": 2}, "with whose mamba_n_groups = 2 llama.cpp was"),
    ("granitemoehybrid", {"2.attention": DROP}, {}, "cannot leave out model.layers.2.attention al"),
    ("granitemoehybrid", {"2.mlp": Level(channels=16)}, {}, "make model.layers.2.mlp narrower"),
    ("mamba", {}, {"use_conv_bias": False}, "with whose use_conv_bias = False llama.cpp was"),
    ("mamba2", {}, {"n_groups": 2}, "with whose n_groups = 2 llama.cpp was"),
    ("mamba2", {}, {"time_step_limit": [0.0, 0.1]}, "with whose time_step_limit = (0.0, 0.1) lla"),
    ("nemotron_h", {}, {"layers_block_type": EXPERTS}, "nemotron_h_moe wants experts there"),
    ("nemotron_h mixture", {"1.mlp": Level(channels=16)}, {}, "make model.layers.1.mlp narrower"),
    ("nemotron_h mixture", {"1.mixer.experts.0": DROP}, {}, "fewer experts than other"),
    ("nemotron_h", {"1.mlp": BIASED}, {}, "cannot give the output of model.layers.1.mlp a bias"),
    ("nemotron_h", {"0": DROP, "4": DROP, "6": DROP}, {}, "needs a layer with another mixer"),
    ("qwen3_next", {}, {"mlp_only_layers": [1]}, "layers.1.mlp, because llama.cpp's architecture"),
    ("deepseek_v3", {}, {"q_lora_rank": None}, "5 layers of this deepseek_v3 model, because llama"),
    ("deepseek_v3", {}, {"rope_parameters": UNSCALED}, "whose rotary embeddings are yarn"),
    ("deepseek_v2", {}, GROUPED, "whose topk_method = 'group_limi"),
    ("ministral3", {}, {"rope_parameters": GROWING | HALF}, "whose rotary embeddings are yarn"),
    ("mpt", {}, {"attn_config.alibi": False}, "whose alibi = False llama.cpp was not tried"),
    ("mpt", {}, {"attn_config.softmax_scale": 0.3}, "whose softmax_scale = 0.3 llama.cpp was not"),
    ("llama4_text", {}, {"floor_scale": 16}, "with whose floor_scale = 16 llama.cpp was not"),
    ("llama4_text", {}, {"no_rope_layers": [1] * 8}, "not every 4th of its layers"),
    (
        "exaone4",
        {},
        {"sliding_window": 8},
        "5 layers, because llama.cpp's architecture exaone4 has",
    ),
    ("exaone4", {}, {"sliding_window": None, "layer_types": [FULL] * 64}, "of 64 layers, because"),
    ("exaone4 windowed", {}, {"layer_types": [FULL, SLIDING] * 32}, "in all but every 4th"),
    ("exaone4 windowed", {"0": DROP}, {}, "of 63 layers, because llama.cpp's architecture exaone4"),
    ("afmoe", {}, {}, "cannot hold afmoe models; 'evocompress models --formats' lists"),
]


@pytest.mark.parametrize(("model_type", "levels", "settings", "reason"), OTHERS)
def test_what_llama_cpp_would_not_compute_is_refused(
    model_type: str, levels: dict[str, Level], settings: dict[str, Any], reason: str
) -> None:
    loaded = gguf_loaded(model_type, **settings)
    assert reason in (obstacle(loaded, levels) or "")


def test_heads_that_must_span_the_hidden_state_are_not_cut() -> None:
    loaded = gguf_loaded("cohere")
    every = {f"{i}.attention": Level(kv_groups=1, group_heads=1) for i in range(5)}
    assert "together as wide as the hidden size" in (obstacle(loaded, every) or "")
    assert obstacle(loaded) is None


def test_weights_that_cannot_be_cut_into_blocks_are_named(tmp_path: Path) -> None:
    loaded = gguf_loaded("bloom")
    with pytest.raises(ExportError, match="has 48 columns of its heads, no multiple of 32"):
        materialize(
            *(loaded, PlainLibrary(loaded), candidate_of(loaded, {}), tmp_path / "out"),
            format="gguf",
            weights="q8_0",
        )


def test_weights_that_gguf_does_not_have_are_named(tmp_path: Path) -> None:
    loaded = gguf_loaded("bloom")
    loaded.model.double()
    with pytest.raises(ExportError, match="of type float64, as this model's are: choose one of f"):
        write(loaded, candidate_of(loaded, {}), tmp_path / "out", "gguf")
    assert not (tmp_path / "out").exists()


def test_every_architecture_is_one_of_gguf_py() -> None:
    assert {known.name for known in ARCHITECTURES.values()} <= set(MODEL_ARCH_NAMES.values())


def test_first_layers_without_experts_are_counted_again(tmp_path: Path) -> None:
    lfm2 = gguf_loaded("lfm2_moe")
    out = write(lfm2, candidate_of(lfm2, {"0": DROP}), tmp_path / "out", "gguf")
    file = GgufReference(out / "model.gguf")
    sizes = ("leading_dense_block_count", "expert_gating_func", "attention.head_count_kv")
    assert [file.metadata[f"lfm2moe.{size}"] for size in sizes] == [1, 2, [0, 2, 0, 2]]
    bias = lfm2.model.get_buffer("model.layers.2.feed_forward.expert_bias")
    held = torch.tensor(file.tensors["blk.1.exp_probs_b.bias"])
    torch.testing.assert_close(held.float(), bias, rtol=0, atol=0)


def test_a_hybrid_with_experts_has_another_architecture(tmp_path: Path) -> None:
    loaded = gguf_loaded("nemotron_h latent mixture")
    out = write(loaded, candidate_of(loaded, uneven_gguf_levels(loaded)), tmp_path / "out", "gguf")
    file = GgufReference(out / "model.gguf")
    sizes = ("feed_forward_length", "expert_count", "moe_latent_size", "expert_weights_scale")
    config: Any = loaded.model.config
    wanted = [24, 0, 24, 0, 0, 24], 4, config.moe_latent_size, 2.5
    assert tuple(file.metadata[f"nemotron_h_moe.{size}"] for size in sizes) == wanted
    experts = file.tensors["blk.0.ffn_up_exps.weight"]
    assert experts.shape == (4, 24, config.moe_latent_size)
    assert "blk.0.ffn_gate_exps.weight" not in file.tensors


def test_keys_and_values_of_a_latent_are_two_tensors(tmp_path: Path) -> None:
    loaded = gguf_loaded("deepseek_v3 yarn")
    candidate = candidate_of(loaded, gguf_levels(loaded))
    out = write(loaded, candidate, tmp_path / "out", "gguf")
    assert_written(out, loaded, candidate)
    file, config = GgufReference(out / "model.gguf"), loaded.model.config
    sizes = ("head_count", "head_count_kv", "key_length", "value_length", "key_length_mla")
    rank, turned = config.kv_lora_rank, config.qk_rope_head_dim
    keys, values = config.qk_nope_head_dim, config.v_head_dim
    wanted = [2, 1, rank + turned, rank, keys + turned]
    assert [file.metadata[f"deepseek2.attention.{size}"] for size in sizes] == wanted
    assert file.metadata["deepseek2.rope.scaling.yarn_log_multiplier"] == pytest.approx(0.07)
    whole = write(loaded, candidate_of(loaded, {}), tmp_path / "whole", "gguf")
    file = GgufReference(whole / "model.gguf")
    made = loaded.model.get_parameter("model.layers.0.self_attn.kv_b_proj.weight").detach()
    first = torch.tensor(file.tensors["blk.0.attn_k_b.weight"])[0].T
    torch.testing.assert_close(first.float(), made[:keys])
    second = torch.tensor(file.tensors["blk.0.attn_v_b.weight"])[1]
    torch.testing.assert_close(second.float(), made[2 * keys + values :][:values])


def test_a_number_of_layers_says_whether_queries_are_of_a_latent() -> None:
    lite = gguf_loaded("deepseek_v2 lite")
    assert obstacle(lite) is None and obstacle(lite, {"3": DROP}) is None
    assert "25 layers of this deepseek_v2" in (obstacle(lite, {"3": DROP, "4": DROP}) or "")
    latent = gguf_loaded("deepseek_v2", num_hidden_layers=26)
    assert "wants queries without a latent there" in (obstacle(latent) or "")


def metadata_of(name: str, folder: Path) -> dict[str, Any]:
    loaded = gguf_loaded(name)
    out = write(loaded, candidate_of(loaded, gguf_levels(loaded)), folder / name, "gguf")
    return {key: f.contents() for key, f in GGUFReader(out / "model.gguf").fields.items()}


def test_numbers_of_activations_and_attentions_are_told(tmp_path: Path) -> None:
    told = metadata_of("apertus", tmp_path)
    kept = [gguf_loaded("apertus").model.model.layers[i].mlp.act_fn for i in (0, 2, 3, 4)]
    for part in ("alpha_p", "alpha_n", "beta", "eps"):
        assert told[f"xielu.{part}"] == pytest.approx([float(getattr(a, part)) for a in kept])
    told = metadata_of("mpt", tmp_path)
    alibi, clip = (told[f"mpt.attention.{key}"] for key in ("max_alibi_bias", "clamp_kqv"))
    assert (alibi, clip) == (8, 0)
    assert metadata_of("dbrx", tmp_path)["dbrx.attention.clamp_kqv"] == 0.5
    told = metadata_of("ministral3", tmp_path)
    assert told["mistral3.attention.temperature_scale"] == pytest.approx(0.3)
    assert told["mistral3.rope.scaling.original_context_length"] == 8
