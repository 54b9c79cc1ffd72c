"""What a GGUF file must be to be read as a language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evocompress.demo_model import demo_gguf
from evocompress.errors import ModelError
from evocompress.gguf_kind import check_language_model
from evocompress.sources import locate

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


def test_the_demo_passes() -> None:
    try:
        path = demo_gguf()
    except ModelError:
        pytest.skip("no demo model here")
    check_language_model(path)


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
