"""Checkpoints read by transformers 4, in the environment that `make engines` makes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from evocompress.export import materialize
from evocompress.export.gguf_tokenizer import KNOWN
from evocompress.models.loading import LoadedModel
from evocompress.testing.byte_tokenizers import TEXTS, trained_tokenizer
from evocompress.testing.engines import missing_transformers4, read_with_transformers4
from evocompress.testing.formats import candidate_of, even_channels, in_memory, with_zeros
from evocompress.testing.piece_tokenizers import KINDS as PIECES
from evocompress.testing.piece_tokenizers import piece_tokenizer
from evocompress.testing.plain_library import PlainLibrary
from evocompress.testing.probes import random_ids
from evocompress.testing.rotary import kinds_of, rotary_families, rotary_loaded
from evocompress.testing.tiny import DECODERS, tiny_loaded, windowless

pytestmark = pytest.mark.engines

CLOSE = 1e-4


@pytest.fixture(autouse=True)
def there() -> None:
    reason = missing_transformers4()
    if reason is not None:
        pytest.skip(reason)


def test_every_kind_of_rotary_embeddings_is_read(tmp_path: Path) -> None:
    models = {
        f"{name}-{kind}": rotary_loaded(name, kind)
        for name in rotary_families()
        for kind in kinds_of(name)
    }
    compare(models, {name: {} for name in models}, "stock", tmp_path)


@pytest.mark.parametrize("form", ["stock", "padded"])
def test_compressed_decoders_are_read(form: str, tmp_path: Path) -> None:
    models = {name: tiny_loaded(name, layers=4) for name in DECODERS}
    models["qwen2_moe"] = rotary_loaded("qwen2_moe", "default", layers=4)
    if form == "padded":
        models = {name: model for name, model in models.items() if model.family.mixture is None}
    compare(models, {name: even_channels(m) for name, m in models.items()}, form, tmp_path)


def test_tokenizers_are_read(tmp_path: Path) -> None:
    extra = {"extra_special_tokens": ["<|tool|>"]}
    texts = (*TEXTS, "call <|tool|> now")
    expected = {}
    for kind in (*KNOWN, *PIECES):
        tokenizer = piece_tokenizer(kind) if kind in PIECES else trained_tokenizer(kind)
        tokenizer.add_special_tokens(extra)
        loaded = replace(windowless("llama", layers=1, vocabulary=800), tokenizer=tokenizer)
        materialize(loaded, None, candidate_of(loaded, {}), tmp_path / kind, format="stock")
        expected[kind] = [tokenizer(text)["input_ids"] for text in texts]
    answer = read_with_transformers4([tmp_path / kind for kind in expected], texts)
    for kind, ids in expected.items():
        assert answer[str(tmp_path / kind)]["ids"] == ids, kind


def compare(
    models: dict[str, LoadedModel], levels: dict[str, dict], form: str, tmp_path: Path
) -> None:
    """transformers 4 computes of every checkpoint what the candidate does in memory."""
    expected = {}
    ids = random_ids()
    for name, loaded in models.items():
        loaded.model.set_attn_implementation("eager")
        candidate = candidate_of(loaded, with_zeros(loaded, levels[name]))
        out = materialize(loaded, PlainLibrary(loaded), candidate, tmp_path / name, format=form)
        save_file({"input_ids": ids}, out / "batch.safetensors")
        expected[name] = in_memory(loaded, candidate, ids)
    answer = read_with_transformers4([tmp_path / name for name in models])
    assert answer["version"].startswith("4.")
    outputs = {name: load_file(tmp_path / name / "outputs.safetensors") for name in models}
    errors = {name: float((outputs[name]["first"] - expected[name]).abs().max()) for name in models}
    assert {name: error for name, error in errors.items() if error > CLOSE} == {}
