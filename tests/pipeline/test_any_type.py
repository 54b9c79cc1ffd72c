"""From a folder to a smaller checkpoint that generates, for models that have no family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from run_files import tiny_run, written
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import evocompress.hf  # noqa: F401
from evocompress import api
from evocompress.compression.live_model import LiveModel
from evocompress.core.config_file import load_config
from evocompress.core.progress import Silent
from evocompress.export import read_record
from evocompress.models.checkpoints import quiet_transformers
from evocompress.pipeline.context import RunContext
from evocompress.pipeline.run_folder import RunFolder
from evocompress.testing.derived import running_model, typical_config
from evocompress.testing.formats import greedy
from evocompress.testing.probes import random_ids
from evocompress.testing.tiny import tiny_tokenizer

TYPES = {
    "olmo2": "norms behind the sub-layers, and of all queries together",
    "phi": "attention and MLP side by side behind one norm; biases",
    "gpt_neox": "one matrix of queries, keys and values",
    "bloom": "residual additions within attention and MLP; biases by distance",
    "glm4": "four norms; gate and up in one matrix",
    "cohere2": "side by side, windows, logits scaled",
    "lfm2": "convolutions in place of some attentions",
    "qwen3_next": "linear attention in place of some attentions; gates; shared experts",
    "nemotron_h": "one sub-layer a block: state space, attention or MLP",
    "deepseek_v3": "latent attention; a first block without experts",
    "gpt_oss": "sinks; experts with biases, gate and up in turns",
    "zamba": "a transformer that several blocks share",
    "gemma4_text": "heads of two widths; inputs of each block's own; norms of values",
}
"""Types that differ in structure."""


MIXTURES = ("qwen3_next", "deepseek_v3", "gpt_oss")


def space_of(name: str) -> dict[str, Any]:
    """Widths, and sub-layers and experts that go; what blocks share is narrowed."""
    units = ["attention", "mlp", *(["expert"] if name in MIXTURES else [])]
    drop = {} if name == "zamba" else {"drop": {"units": units}}
    budget = {"body_params": 0.95 if name == "zamba" else 0.7}
    return {"width": {"multiple_of": 8}, "budget": budget} | drop


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.long) for name in TYPES])
def test_search_materialize_reload_generate(name: str, tmp_path: Path) -> None:
    dense = saved(name, tmp_path / "model")
    run = tiny_run(
        tmp_path,
        space=space_of(name),
        search={"name": "auto", "tokens": 3000},
        evaluate={"latency": False},
    )
    winner = api.search(load_config(written(tmp_path / "run.yaml", run)))
    checkpoint = api.materialize(winner)
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert dense.num_parameters() > model.num_parameters()
    assert model.num_parameters() == read_record(checkpoint).measured["params"]
    ids = random_ids()
    torch.testing.assert_close(model(ids).logits, in_memory(winner, ids), rtol=1e-4, atol=1e-4)
    assert torch.equal(greedy(model, ids, cache=True), greedy(model, ids, cache=False))


@torch.no_grad()
def in_memory(run: Path, ids: Tensor) -> Tensor:
    """The logits of the winner within the dense model's modules."""
    folder = RunFolder(run)
    context = RunContext(folder.config(), folder, Silent(), finished=True)
    candidate = folder.read_winner().candidate
    assert candidate.levels
    with LiveModel(context.loaded, context.library) as live:
        live.apply(candidate)
        logits: Tensor = context.loaded.model(ids).logits
    return logits


def saved(name: str, folder: Path) -> PreTrainedModel:
    """A tiny model of a type as a checkpoint with a tokenizer."""
    model = running_model(typical_config(name)).float()
    model.config.dtype = torch.float32
    model.config._experts_implementation = None
    model.config.bos_token_id = model.config.eos_token_id = 0
    with quiet_transformers():
        model.save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
    return model
