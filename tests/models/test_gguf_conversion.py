"""GGUF files are converted once, and what the cache holds is verified."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch

from evocompress.core.errors import ModelError
from evocompress.export.gguf_tensors import interleaved
from evocompress.export.gguf_tokenizer import add_tokenizer
from evocompress.models import demo, gguf_conversion
from evocompress.models.checkpoints import Checkpoint, locate, read_model, read_tokenizer
from evocompress.models.demo import DEMO_SOURCE
from evocompress.models.loading import LoadedModel, fingerprint, load
from evocompress.testing.byte_tokenizers import trained_tokenizer
from evocompress.testing.tiny import windowless

TEXT = "It's 3.14159 of 漢字, they'll say;  two  spaces"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with a byte-level tokenizer as a GGUF file."""
    model = windowless("llama", hidden=64, vocabulary=640)
    source = replace(model, tokenizer=trained_tokenizer("smollm"))
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    config = source.model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    add_tokenizer(writer, source, config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in source.model.state_dict().items():
        turned = ".q_proj." in name or ".k_proj." in name
        stored = interleaved(tensor, config.head_dim) if turned else tensor
        place = names.get_name(name, try_suffixes=(".weight",))
        writer.add_tensor(place, stored.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVOCOMPRESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


def conversions(monkeypatch: pytest.MonkeyPatch) -> list[Checkpoint]:
    """Filled with what is unpacked from now on."""
    found: list[Checkpoint] = []

    def noted(checkpoint: Checkpoint, dtype: str) -> object:
        found.append(checkpoint)
        return read_model(checkpoint, dtype)

    monkeypatch.setattr(gguf_conversion, "read_model", noted)
    return found


def same(one: LoadedModel, other: LoadedModel) -> bool:
    return one.fingerprint == other.fingerprint


def test_a_conversion_draws_no_bar(
    written: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load(str(written), device="cpu")
    assert any(cache.iterdir()) and "Converting" not in capsys.readouterr().err


def test_a_file_is_unpacked_once_under_any_name(
    written: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked = conversions(monkeypatch)
    first = load(str(written), device="cpu")
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(written.read_bytes())
    assert same(first, load(str(copy), device="cpu")) and len(unpacked) == 1
    assert first.model.dtype == torch.float32
    assert load(str(written), dtype="bfloat16", device="cpu").model.dtype == torch.bfloat16
    assert len(unpacked) == 1
    content = bytearray(written.read_bytes())
    content[-1] ^= 1
    copy.write_bytes(content)
    assert not same(first, load(str(copy), device="cpu")) and len(unpacked) == 2
    assert len(list(cache.iterdir())) == 2


def test_what_is_kept_is_what_the_file_says(written: Path, cache: Path) -> None:
    kept, checkpoint = load(str(written), device="cpu"), locate(str(written))
    model, tokenizer = read_model(checkpoint, "auto"), read_tokenizer(checkpoint)
    assert kept.tokenizer is not None
    assert kept.tokenizer(TEXT).input_ids == tokenizer(TEXT).input_ids
    assert kept.tokenizer.all_special_ids == tokenizer.all_special_ids
    direct = dict(model.named_parameters())
    for name, parameter in kept.model.named_parameters():
        assert torch.equal(parameter, direct[name]), name
    assert gguf_conversion.family_of(model) is kept.family
    assert fingerprint(model) == kept.fingerprint


@pytest.mark.parametrize("harm", ["flipped", "cut", "gone", "foreign"])
def test_a_damaged_conversion_is_made_anew(
    written: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    first = load(str(written), device="cpu")
    [folder] = [path for path in cache.iterdir() if path.is_dir()]
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    if harm == "flipped":
        content[-5] ^= 64
        weights.write_bytes(content)
    elif harm == "cut":
        weights.write_bytes(content[:-8])
    elif harm == "gone":
        (folder / "tokenizer.json").unlink()
    else:
        (folder / gguf_conversion.CHECKSUMS).write_text("[]")
    unpacked = conversions(monkeypatch)
    assert same(first, load(str(written), device="cpu")) and len(unpacked) == 1
    assert same(first, load(str(written), device="cpu")) and len(unpacked) == 1


def test_two_at_once_convert_once(
    written: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked = conversions(monkeypatch)
    checkpoint = locate(str(written))
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(gguf_conversion.converted, [checkpoint] * 2)
    assert one == other and len(unpacked) == 1
    assert [path.name for path in cache.iterdir()] == [one.folder.name]


def test_a_failed_conversion_leaves_nothing(
    written: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: object) -> None:
        raise ModelError("unknown family")

    monkeypatch.setattr(gguf_conversion, "family_of", refused)
    with pytest.raises(ModelError, match="unknown family"):
        load(str(written), device="cpu")
    assert list(cache.iterdir()) == []


def test_the_demo_is_kept_in_bfloat16_and_verified(
    written: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "demo_gguf", lambda: written)
    unpacked = conversions(monkeypatch)
    first = load(DEMO_SOURCE, device="cpu", dtype="bfloat16")
    [folder] = [path for path in cache.iterdir() if path.is_dir()]
    assert '"dtype": "bfloat16"' in (folder / "config.json").read_text()
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 64
    weights.write_bytes(content)
    for _ in range(2):
        assert same(first, load(DEMO_SOURCE, device="cpu", dtype="bfloat16"))
        assert len(unpacked) == 2
    load(str(written), device="cpu")
    assert len(unpacked) == 3


def test_an_interrupted_conversion_leaves_nothing(
    written: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(gguf_conversion, "read_model", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load(str(written), device="cpu")
    assert not [path for path in cache.iterdir() if path.is_dir()]
