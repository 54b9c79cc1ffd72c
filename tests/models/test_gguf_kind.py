"""What a GGUF file must be to be read as a language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evocompress.core.errors import ModelError
from evocompress.models.checkpoints import locate, read_model
from evocompress.models.demo import demo_gguf
from evocompress.models.gguf_kind import check_language_model
from evocompress.pipeline.planning import outline

gguf = pytest.importorskip("gguf")

TENSORS = ("token_embd.weight", "blk.0.attn_q.weight", "blk.1.ffn_up.weight", "output_norm.weight")


def write(path: Path, *tensors: str, **facts: Any) -> Path:
    """A GGUF file of two blocks with more tensors and facts."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    if "pooling" in facts:
        writer.add_pooling_type(facts["pooling"])
    if "causal" in facts:
        writer.add_causal_attention(facts["causal"])
    for name in (*TENSORS, *tensors):
        writer.add_tensor(name, np.ones((4, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_language_model_passes(tmp_path: Path) -> None:
    none = gguf.PoolingType.NONE
    path = write(tmp_path / "m.gguf", "output.weight", pooling=none, causal=True)
    check_language_model(path)
    assert locate(str(path)).gguf == "m.gguf"


@pytest.mark.long
def test_the_demo_passes() -> None:
    try:
        path = demo_gguf()
    except ModelError:
        pytest.skip("no demo model here")
    check_language_model(path)
    outline(str(path))


@pytest.mark.parametrize("facts", [{"pooling": gguf.PoolingType.LAST}, {"causal": False}])
def test_an_embedding_model_is_refused(facts: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is an embedding model or a reranker"):
        locate(str(write(tmp_path / "m.gguf", **facts)))


@pytest.mark.parametrize(
    "name", ["rope_freqs.weight", "cls.weight", "cls.output.weight", "blk.2.attn_q.weight"]
)
def test_tensors_that_would_be_left_out_are_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"holds {name}, which is not read"):
        locate(str(write(tmp_path / "m.gguf", name)))


def whole(path: Path, *tensors: str, **facts: str | float) -> Path:
    """A GGUF file of one block of a Llama, with more tensors and settings."""
    writer = gguf.GGUFWriter(path, "llama")
    sizes = {"block_count": 1, "context_length": 64, "embedding_length": 8, "vocab_size": 16}
    sizes |= {"feed_forward_length": 8, "attention.head_count": 2, "rope.dimension_count": 4}
    for key, size in sizes.items():
        writer.add_uint32(f"llama.{key}", size)
    writer.add_layer_norm_rms_eps(1e-5)
    for key, value in facts.items():
        add = writer.add_string if isinstance(value, str) else writer.add_float32
        add(f"llama.{key}", value)
    matrices = [f"attn_{part}" for part in ("q", "k", "v", "output")]
    matrices += [f"ffn_{part}" for part in ("gate", "up", "down")]
    shapes = {f"blk.0.{name}.weight": (8, 8) for name in matrices}
    norms = ("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight")
    shapes |= {"token_embd.weight": (16, 8)} | dict.fromkeys((*norms, *tensors), (8,))
    for name, shape in shapes.items():
        writer.add_tensor(name, np.ones(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    "name",
    [
        *("blk.0.attn_q.bias", "blk.0.attn_output.bias", "blk.0.attn_q_norm.weight"),
        *("blk.0.post_ffw_norm.weight", "blk.0.attn_q.weight.lora_a"),
        *("output.bias", "output_norm.bias"),
    ],
)
def test_tensors_that_transformers_does_not_read_are_named(name: str, tmp_path: Path) -> None:
    path = whole(tmp_path / "m.gguf", name)
    for read in (lambda: read_model(locate(str(path)), "auto"), lambda: outline(str(path))):
        with pytest.raises(ModelError, match=f"holds {name}, which is not read"):
            read()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("rope.scaling.type", kind) for kind in ("linear", "yarn", "longrope")],
        *[("rope.scaling.factor", 4.0), ("rope.scale_linear", 2.0), ("logit_scale", 0.5)],
        *[("attention.scale", 0.5), ("embedding_scale", 12.0), ("residual_scale", 0.25)],
        *[("final_logit_softcapping", 5.0), ("attn_logit_softcapping", 5.0)],
        *[("attention.sliding_window", 8.0), ("attention.clamp_kqv", 8.0)],
        *[("rope.freq_base_swa", 5e5), ("expert_count", 4.0), ("setting_to_come", 3.0)],
    ],
)
def test_settings_that_transformers_does_not_read_are_named(
    key: str, value: str | float, tmp_path: Path
) -> None:
    path = whole(tmp_path / "m.gguf", **{key: value})
    for read in (lambda: read_model(locate(str(path)), "auto"), lambda: outline(str(path))):
        with pytest.raises(ModelError, match=f"holds llama.{key} = {value}, which is not read"):
            read()


def test_settings_that_change_nothing_are_no_obstacle(tmp_path: Path) -> None:
    scaling = {"rope.scaling.type": "none", "rope.scaling.factor": 4.0}
    neutral = {"logit_scale": 1.0, "residual_scale": 0.0, "expert_count": 0.0}
    same = {"rope.freq_base": 5e5, "rope.freq_base_swa": 5e5, "attention.sliding_window": 0.0}
    path = whole(tmp_path / "m.gguf", **scaling, **neutral, **same)
    model = read_model(locate(str(path)), "auto")
    assert model.config.rope_parameters["rope_theta"] == 5e5
    assert outline(str(path)).model.config.num_hidden_layers == 1
