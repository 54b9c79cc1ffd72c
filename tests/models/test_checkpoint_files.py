from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evocompress.core.errors import ModelError
from evocompress.core.types import Candidate
from evocompress.export import materialize
from evocompress.export.reload import read_checkpoint
from evocompress.models.loading import load
from evocompress.pipeline.planning import outline
from evocompress.testing.broken import change_weights, edit_config, refusal
from evocompress.testing.probes import answer, random_batch
from evocompress.testing.tiny import tiny_checkpoint, tiny_loaded, tiny_model

LAYER = "model.layers.2"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "tiny")


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_truncated_weights_are_named(checkpoint: Path, kept: int) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert str(path) in refusal(checkpoint)


def test_a_missing_config_is_named(checkpoint: Path) -> None:
    (checkpoint / "config.json").unlink()
    assert "has no config.json" in refusal(checkpoint)


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_damaged_config_is_named(checkpoint: Path, text: str) -> None:
    (checkpoint / "config.json").write_text(text)
    assert f"{checkpoint / 'config.json'} is damaged" in refusal(checkpoint)


def test_missing_weights_are_named(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    message = refusal(checkpoint)
    assert "lacks model.safetensors" in message
    assert "save_pretrained" in message


def test_a_missing_shard_is_named(checkpoint: Path) -> None:
    tiny_model("llama").save_pretrained(checkpoint, max_shard_size="200KB")
    (checkpoint / "model.safetensors").unlink()
    assert load(str(checkpoint), device="cpu").fingerprint == tiny_loaded("llama").fingerprint
    shard = sorted(checkpoint.glob("model-*.safetensors"))[-1]
    shard.unlink()
    assert f"lacks {shard.name}" in refusal(checkpoint)


def test_weights_that_the_checkpoint_lacks_are_not_made_up(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    assert "model.layers.1.mlp.up_proj.weight" in refusal(checkpoint)


def test_weights_of_another_shape_are_refused(checkpoint: Path) -> None:
    edit_config(checkpoint, intermediate_size=96)
    message = refusal(checkpoint)
    assert "model.layers.0.mlp.gate_proj.weight of shape (128, 64)" in message
    assert "asks for (96, 64)" in message


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        (f"{LAYER}.self_attn.q_proj.lora_A.weight", torch.ones(4, 64)),
        (f"{LAYER}.self_attn.q_proj.bias", torch.ones(64)),
        (f"{LAYER}.self_attn.q_norm.weight", torch.ones(16)),
        ("model.layers.3.mlp.up_proj.weight", torch.ones(128, 64)),
        ("score.weight", torch.ones(2, 64)),
        ("v_head.summary.weight", torch.ones(1, 64)),
        (f"{LAYER}.self_attn.bias", torch.ones(64)),
    ],
)
def test_tensors_without_a_place_are_named(
    checkpoint: Path, name: str, tensor: torch.Tensor
) -> None:
    change_weights(checkpoint, **{name: tensor})
    assert f"holds {name}, for which the model" in refusal(checkpoint)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("gpt2", "transformer.h.0.attn_bias.weight"),
        ("gpt2", "transformer.h.0.attn.bias_extra"),
        ("gpt2", "transformer.h.0.crossattention.bias"),
        ("gpt2", "h.0.attn.bias.lora_A"),
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq.lora_A"),
        ("bert", "embeddings.position_ids.scale"),
    ],
)
def test_tensors_that_transformers_is_silent_about_are_named(
    tmp_path: Path, family: str, name: str
) -> None:
    folder = tiny_checkpoint(tmp_path, family)
    change_weights(folder, **{name: torch.ones(3)})
    assert f"holds {name}, for which the model" in refusal(folder)


def test_buffers_that_are_left_out_are_told_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny_checkpoint(tmp_path, "gpt2")
    before = load(str(folder), device="cpu").fingerprint
    assert not caplog.records
    mask = torch.ones(1, 1, 8, 8)
    change_weights(folder, **{f"transformer.h.{n}.attn.bias": mask.clone() for n in (0, 1)})
    with caplog.at_level("INFO", "evocompress"):
        assert load(str(folder), device="cpu").fingerprint == before
    (record,) = caplog.records
    assert "with transformer.h.0.attn.bias and 1 more tensors: left out" in record.getMessage()


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.int64])
def test_weights_that_need_scales_are_refused(checkpoint: Path, dtype: torch.dtype) -> None:
    name = f"{LAYER}.mlp.up_proj.weight"
    change_weights(checkpoint, **{name: torch.ones(128, 64).to(dtype)})
    assert f"holds {name} of type" in refusal(checkpoint)


def test_buffers_of_older_versions_and_copies_of_a_tied_head_go_on_loading(
    checkpoint: Path,
) -> None:
    before = load(str(checkpoint), device="cpu").fingerprint
    stored = load_file(checkpoint / "model.safetensors")
    buffers = {
        f"{LAYER}.self_attn.rotary_emb.inv_freq": torch.ones(8),
        f"{LAYER}.self_attn.rotary_emb.cos_cached": torch.ones(1, 1, 512, 16),
        f"{LAYER}.self_attn.causal_mask": torch.ones(1, 1, 512, 512, dtype=torch.bool),
        f"{LAYER}.self_attn.masked_bias": torch.tensor(-1e4),
        "model.position_ids": torch.arange(512),
        "lm_head.weight": stored["model.embed_tokens.weight"].clone(),
    }
    change_weights(checkpoint, **buffers)
    assert load(str(checkpoint), device="cpu").fingerprint == before


def test_the_prefix_of_the_body_may_be_missing(checkpoint: Path) -> None:
    before = load(str(checkpoint), device="cpu").fingerprint
    path = checkpoint / "model.safetensors"
    bare = {name.removeprefix("model."): tensor for name, tensor in load_file(path).items()}
    save_file(bare, path, metadata={"format": "pt"})
    assert load(str(checkpoint), device="cpu").fingerprint == before
    change_weights(checkpoint, **{"model.norm.weight": bare["norm.weight"] + 1})
    assert "holds both norm.weight and model.norm.weight" in refusal(checkpoint)


def test_the_prefix_of_the_body_may_be_there_though_there_is_no_head(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "bert")
    before = load(str(folder), device="cpu").fingerprint
    path = folder / "model.safetensors"
    whole = {f"bert.{name}": tensor for name, tensor in load_file(path).items()}
    whole |= {"cls.predictions.bias": torch.ones(256)}
    save_file(whole, path, metadata={"format": "pt"})
    assert load(str(folder), device="cpu").fingerprint == before
    change_weights(folder, **{"classifier.weight": torch.ones(2, 64)})
    assert "holds classifier.weight, for which" in refusal(folder)


def test_a_pooler_that_nothing_uses_may_be_missing(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "bert", "bert")
    whole = load(str(folder), device="cpu")
    change_weights(folder, **{"pooler.dense.weight": None, "pooler.dense.bias": None})
    loaded = load(str(folder), device="cpu")
    assert loaded.fingerprint == load(str(folder), device="cpu").fingerprint
    batch = random_batch(loaded.family, loaded.model)
    assert torch.equal(*(answer(one.family, one.model, batch) for one in (whole, loaded)))
    for form in ("stock", "hf"):
        out = materialize(loaded, None, Candidate(), tmp_path / form, format=form)
        assert not any("pooler" in name for name in load_file(out / "model.safetensors"))
        again = read_checkpoint(out, loaded.model)
        assert torch.equal(
            answer(loaded.family, again, batch), answer(loaded.family, loaded.model, batch)
        )


def test_an_adapter_beside_the_weights_is_refused(checkpoint: Path) -> None:
    (checkpoint / "adapter_config.json").write_text("{}")
    assert "has an adapter beside its weights" in refusal(checkpoint)


def test_a_tensor_in_two_files_is_refused(checkpoint: Path) -> None:
    tiny_model("llama").save_pretrained(checkpoint, max_shard_size="200KB")
    (checkpoint / "model.safetensors").unlink()
    first, last = (sorted(checkpoint.glob("model-*.safetensors"))[at] for at in (0, -1))
    name, tensor = next(iter(load_file(first).items()))
    save_file(load_file(last) | {name: tensor + 1}, last, metadata={"format": "pt"})
    assert f"holds {name}, which another file of it holds as well" in refusal(checkpoint)


def test_without_a_class_a_tied_model_must_have_the_names_of_one_with_a_head(
    checkpoint: Path,
) -> None:
    for named in ([], None):
        edit_config(checkpoint, architectures=named)
        assert load(str(checkpoint), device="cpu").family.model_type == "llama"
    path = checkpoint / "model.safetensors"
    bare = {name.removeprefix("model."): tensor for name, tensor in load_file(path).items()}
    save_file(bare, path, metadata={"format": "pt"})
    assert "names no class in architectures" in refusal(checkpoint)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_labels", 10**9),
        ("num_hidden_layers", 10**6),
        ("num_hidden_layers", 0),
        ("vocab_size", 10**12),
        ("hidden_size", 10**9),
        ("intermediate_size", -1),
        ("num_attention_heads", 10**9),
    ],
)
def test_absurd_numbers_in_a_config_are_refused(checkpoint: Path, key: str, value: int) -> None:
    edit_config(checkpoint, **{key: value})
    assert f"{key} is {value}, but must be from 1 to" in refusal(checkpoint)
    with pytest.raises(ModelError, match=f"{key} is {value}, but must be from 1 to"):
        outline(str(checkpoint))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"num_hidden_layers": 1000, "num_local_experts": 10_000},
            "1,000 layers of 10,000 experts",
        ),
        ({"n_layer": 11, "num_experts": 10_000}, "11 layers of 10,000 experts"),
        ({"depths": [500, 501]}, "1,000 at most together"),
    ],
)
def test_numbers_that_are_absurd_together_are_refused(
    checkpoint: Path, changes: dict[str, object], text: str
) -> None:
    edit_config(checkpoint, **{"num_hidden_layers": 2} | changes)
    assert text in refusal(checkpoint)
    with pytest.raises(ModelError, match=text):
        outline(str(checkpoint))


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "nonsense"},
        {"rope_parameters": {"rope_type": "nonsense", "rope_theta": 1e4}},
        {"num_attention_heads": 3, "num_key_value_heads": 2, "head_dim": None},
        {"pad_token_id": 10**6},
    ],
)
def test_a_config_that_no_model_can_be_made_of_is_told_in_one_line(
    checkpoint: Path, changes: dict[str, object]
) -> None:
    edit_config(checkpoint, **changes)
    assert str(checkpoint) in refusal(checkpoint)
    with pytest.raises(ModelError, match=str(checkpoint)) as caught:
        outline(str(checkpoint))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kernel", ["flash_attention_2", "foo/bar-kernel", "nonsense"])
@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_checkpoint_does_not_choose_kernels(checkpoint: Path, key: str, kernel: str) -> None:
    before = load(str(checkpoint), device="cpu").fingerprint
    edit_config(checkpoint, **{key: kernel})
    loaded = load(str(checkpoint), device="cpu")
    assert loaded.fingerprint == before
    for model in (loaded.model, outline(str(checkpoint)).model):
        assert model.config._attn_implementation in ("sdpa", "eager")


def test_a_config_of_a_much_larger_model_than_is_stored_is_refused(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    change_weights(checkpoint, **{name: None for name in load_file(path) if ".layers." in name})
    edit_config(checkpoint, num_hidden_layers=1000, intermediate_size=10**6)
    assert "but its config.json describes a model of" in refusal(checkpoint)


def test_a_missing_tokenizer_is_told(checkpoint: Path) -> None:
    for path in checkpoint.glob("tokenizer*"):
        path.unlink()
    assert "no tokenizer" in refusal(checkpoint)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [f"{LAYER}.mlp.up_proj.weight", "model.norm.weight"])
def test_weights_that_are_no_numbers_are_refused_by_name(
    checkpoint: Path, value: float, dtype: torch.dtype, name: str
) -> None:
    tiny_model("llama", dtype=dtype).save_pretrained(checkpoint)
    weight = load_file(checkpoint / "model.safetensors")[name]
    weight.view(-1)[-1] = value
    change_weights(checkpoint, **{name: weight})
    assert f"holds {name} with values that are NaN or infinite" in refusal(checkpoint)
    with pytest.raises(ModelError, match=f"holds {name} with values that are NaN"):
        load(str(checkpoint), device="cpu", device_memory=10**9)


def test_weights_too_large_for_a_dtype_are_refused(checkpoint: Path) -> None:
    name = "model.norm.weight"
    change_weights(checkpoint, **{name: torch.full((64,), 1e5)})
    load(str(checkpoint), device="cpu")
    with pytest.raises(ModelError, match=f"holds {name} with .* infinite .in float16"):
        load(str(checkpoint), dtype="float16", device="cpu")


def test_stored_buffers_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "resnet")
    stored = load_file(folder / "model.safetensors")
    name = next(name for name in stored if name.endswith("running_var"))
    change_weights(folder, **{name: stored[name] * float("nan")})
    assert f"holds {name} with values that are NaN" in refusal(folder)
