"""Models whose blocks are not understood, from search to a checkpoint that transformers loads."""

from __future__ import annotations

import json

import pytest
import torch
from run_files import tiny_run, written
from transformers import AutoModelForCausalLM, BartConfig, BartForCausalLM

from evocompress import api
from evocompress.core.config_file import load_config
from evocompress.core.errors import ConfigError, ModelError
from evocompress.testing.tiny import tiny_tokenizer

SPACE = {
    "bits": {"types": ["w8g32", "w4g32", "w2g32"]},
    "sparsity": {"target": 0.25, "levels": 1},
    "budget": {"bits_per_weight": 5.0},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    torch.manual_seed(0)
    sizes = {f"{part}_{name}": n for part in ("encoder", "decoder") for name, n in SIZES.items()}
    config = BartConfig(
        vocab_size=256,
        d_model=64,
        max_position_embeddings=128,
        is_decoder=True,
        is_encoder_decoder=False,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        forced_eos_token_id=None,
        **sizes,
    )
    BartForCausalLM(config).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    return folder


SIZES = {"layers": 2, "attention_heads": 4, "ffn_dim": 128}


def run_of(home, name, **changes):
    run = tiny_run(
        home,
        name=name,
        space=SPACE,
        search={"name": "auto", "tokens": 3000},
        library={"path": str(home / "library")},
        evaluate={"latency": False},
    )
    return load_config(written(home / f"{name}.yaml", run | changes))


@pytest.fixture(scope="module")
def whole(home):
    folder = api.search(run_of(home, "whole"))
    api.materialize(folder)
    return folder


def test_bits_and_zeros_are_searched_and_written(home, whole):
    levels = json.loads((whole / "winner.json").read_text())["levels"]
    assert {level["bits"] for level in levels.values()} == {"w8g32", "w4g32", "w2g32"}
    assert any(level.get("zeros") for level in levels.values())
    record = json.loads((whole / "checkpoint" / "candidate.json").read_text())
    assert record["format"] == "stock"
    api.evaluate(whole)
    assert api.report(whole).exists()


def test_transformers_loads_what_is_written(home, whole):
    pytest.importorskip("compressed_tensors")
    packed = api.materialize(whole, out=home / "packed", form="compressed-tensors")
    folders = (whole / "checkpoint", packed)
    ours, theirs = (AutoModelForCausalLM.from_pretrained(folder) for folder in folders)
    ids = torch.arange(3, 40)[None]
    torch.testing.assert_close(theirs(ids).logits, ours(ids).logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"space": {"drop": {}}}, ModelError, "space.drop: .*encoder_attn.*only space.bits and"),
        ({"space": SPACE | {"width": {}}}, ModelError, "space.width: .*not run .encoder_attn"),
        (
            {"space": {"bits": {"types": ["w8g32"], "scope": ["matrices", "head"]}}},
            ConfigError,
            "scope: head of this bart model cannot have types: .*give matrices alone",
        ),
        ({"space": SPACE | {"budget": {"flops": 0.5}}}, ConfigError, "flops: it is counted by bl"),
        ({"space": SPACE | {"budget": {"kv_bytes": 0.5}}}, ConfigError, "kv_bytes: it is counted"),
        ({"space": SPACE | {"memory": {"context": 8}}}, ConfigError, "space.memory: the caches of"),
    ],
)
def test_what_takes_more_than_matrices_is_refused(home, changes, kind, message):
    with pytest.raises(kind, match=message):
        api.search(run_of(home, "refused", **changes))


def test_it_is_not_healed(whole):
    with pytest.raises(ModelError, match="heal: .*such models are not healed"):
        api.heal(whole)
