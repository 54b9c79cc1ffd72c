"""Quantised checkpoints: unpacked once where transformers can do so anywhere, else refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GptOssConfig, GptOssForCausalLM

from evocompress.core.errors import ModelError
from evocompress.models import gguf_conversion
from evocompress.models.checkpoints import locate, read_model
from evocompress.models.loading import load
from evocompress.pipeline.planning import outline
from evocompress.testing.tiny import tiny_checkpoint

FP8 = {"quant_method": "fp8", "weight_block_size": [32, 32], "activation_scheme": "dynamic"}
FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOCOMPRESS_CACHE", str(tmp_path / "cache"))


def edit_config(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def in_fp8(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A matrix in eight bits, its scale for each block of 32 by 32, and what both mean."""
    blocks = weight.unflatten(0, (-1, 32)).unflatten(2, (-1, 32))
    scale = blocks.abs().amax((1, 3)) / 448
    packed = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
    meant = packed.float() * scale[:, None, :, None]
    return packed.flatten(2).flatten(0, 1), scale, meant.flatten(2).flatten(0, 1)


@pytest.fixture
def eight_bits(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    """A Llama in FP8, and what its matrices mean."""
    folder = tiny_checkpoint(tmp_path / "model")
    (folder / "LICENSE").write_text("terms")
    stored, meant = load_file(folder / "model.safetensors"), {}
    for name in [name for name in stored if "proj" in name]:
        stored[name], stored[f"{name}_scale_inv"], meant[name] = in_fp8(stored[name])
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    edit_config(folder, quantization_config=FP8)
    return folder, meant


def test_eight_bits_are_unpacked_once(
    eight_bits: tuple[Path, dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, meant = eight_bits
    found = load(str(folder), device="cpu")
    weights = found.model.state_dict()
    for name, weight in meant.items():
        torch.testing.assert_close(weights[name], weight.to(weights[name].dtype), msg=name)
    assert not hasattr(found.model.config, "quantization_config")
    assert not hasattr(found.model, "hf_quantizer")
    assert found.folder is not None and (found.folder / "LICENSE").read_text() == "terms"
    assert outline(str(folder)).family is found.family
    monkeypatch.delattr(gguf_conversion, "_convert")
    assert load(str(folder), device="cpu").fingerprint == found.fingerprint


def test_eight_bits_without_their_scales_are_refused(
    eight_bits: tuple[Path, dict[str, Tensor]],
) -> None:
    path = eight_bits[0] / "model.safetensors"
    stored = load_file(path)
    del stored["model.layers.0.mlp.up_proj.weight_scale_inv"]
    save_file(stored, path, {"format": "pt"})
    with pytest.raises(ModelError, match=r"mlp\.up_proj\.weight"):
        load(str(eight_bits[0]), device="cpu")


def test_four_bits_of_gpt_oss_are_unpacked(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 32, "num_local_experts": 2, "head_dim": 16}
    heads = {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = GptOssConfig(**sizes, **heads, vocab_size=128, num_experts_per_tok=1)
    GptOssForCausalLM(config).save_pretrained(tmp_path)
    stored, meant = load_file(tmp_path / "model.safetensors"), {}
    generator = torch.Generator().manual_seed(0)
    for name in [name for name in stored if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, columns, rows = stored.pop(name).shape
        codes = torch.randint(16, (experts, rows, columns // 32, 32), generator=generator)
        power = torch.randint(120, 130, codes.shape[:-1], generator=generator)
        stored[f"{name}_blocks"] = (codes[..., ::2] | codes[..., 1::2] << 4).to(torch.uint8)
        stored[f"{name}_scales"] = power.to(torch.uint8)
        values = FP4[codes] * 2.0 ** (power[..., None] - 127)
        meant[name] = values.flatten(2).transpose(1, 2)
    assert len(meant) == 2
    save_file(stored, tmp_path / "model.safetensors", {"format": "pt"})
    edit_config(tmp_path, quantization_config={"quant_method": "mxfp4"})
    model = read_model(locate(str(tmp_path)), "float32")
    assert not hasattr(model, "hf_quantizer")
    weights = model.state_dict()
    for name, weight in meant.items():
        torch.testing.assert_close(weights[name], weight, msg=name)


@pytest.mark.parametrize("method", ["gptq", "bitsandbytes", "compressed-tensors"])
def test_what_is_not_unpacked_is_refused_by_name(tmp_path: Path, method: str) -> None:
    folder = tiny_checkpoint(tmp_path)
    edit_config(folder, quantization_config={"quant_method": method, "bits": 4})
    wanted = rf"holds quantised weights \({method}\), .* those of fp8 and mxfp4"
    for read in (load, outline):
        with pytest.raises(ModelError, match=wanted):
            read(str(folder))
    edit_config(folder, quantization_config=None)
    assert load(str(folder), device="cpu").family.model_type == "llama"
