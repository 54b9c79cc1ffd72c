"""The proxy's value of a candidate is the divergence of its written checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from export_cases import mixed_candidate
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import evocompress.hf  # noqa: F401
from evocompress.compression.library import Library, build_library
from evocompress.compression.live_model import LiveModel
from evocompress.core.config import HealConfig, LibraryConfig, ProxyConfig
from evocompress.core.requests import Evaluate
from evocompress.core.types import DROP, Candidate, Level
from evocompress.evaluation.heldout import heldout_quality, output_quality
from evocompress.evaluation.proxies import kinds_for, make_proxy
from evocompress.export import materialize, read_record
from evocompress.healing import heal
from evocompress.models.loading import LoadedModel
from evocompress.models.tasks import Task
from evocompress.space.costs import cost_model
from evocompress.testing.formats import candidate_of, with_zeros
from evocompress.testing.probes import answer, assert_equal, random_batch
from evocompress.testing.tiny import tiny_loaded

TOKENS = torch.randint(1, 240, (6, 24), generator=torch.Generator().manual_seed(5))


def real_library(
    loaded: LoadedModel,
    candidate: Candidate,
    path: Path,
    config: LibraryConfig | None = None,
    tokens: Tensor = TOKENS,
) -> Library:
    wanted = {name: (level,) for name, level in candidate.levels if not level.drop}
    return build_library(loaded, wanted, tokens, "tokens", config or LibraryConfig(), path, batch=2)


def test_proxy_equals_the_written_checkpoint(loaded: LoadedModel, tmp_path: Path) -> None:
    candidate, task = mixed_candidate(loaded), loaded.family.task
    tokens = random_batch(loaded.family, loaded.model, 12)
    library = real_library(loaded, candidate, tmp_path / "library", tokens=tokens)
    out = materialize(loaded, library, candidate, tmp_path / "out")
    model = task.auto.from_pretrained(out)
    with LiveModel(loaded, library) as live:
        proxy = make_proxy(live, tokens.split(4), ProxyConfig(kind=kinds_for(task)[0], top_k=256))
        value = proxy.evaluate([Evaluate(candidate, (0, 1, 2))])[0].mean
        live.apply(candidate)
        outputs = answer(loaded.family, loaded.model, tokens)
        assert_equal(answer(loaded.family, model, tokens), outputs)
    assert value > 0.01
    if task.compared != "embeddings":
        assert heldout_kl(task, loaded.model, model, tokens) == pytest.approx(value, rel=1e-4)


def heldout_kl(task: Task, dense: PreTrainedModel, model: PreTrainedModel, tokens: Tensor) -> Any:
    """What the evaluation measures, by code of its own."""
    if task.causal:
        return heldout_quality(dense, {"written": model}, tokens, batch=2)["written"].kl
    return output_quality(task, dense, {"written": model}, tokens, batch=2)["written"]["kl"]


@pytest.mark.parametrize("criterion", ["obs_structured", "flap"])
def test_a_real_library_of_widths(criterion: str, tmp_path: Path) -> None:
    loaded = tiny_loaded("llama", layers=4)
    bias = criterion == "flap"
    levels = {"0.attention": Level(kv_groups=1, group_heads=1, bias=bias)}
    levels |= {"2.attention": Level(kv_groups=1, group_heads=2, bias=bias), "1": DROP}
    levels |= {"3.mlp": Level(channels=60, bias=bias)}
    candidate = candidate_of(loaded, with_zeros(loaded, levels))
    config = LibraryConfig(width_criterion=criterion)
    library = real_library(loaded, candidate, tmp_path / "library", config)
    out = materialize(loaded, library, candidate, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(out)
    with LiveModel(loaded, library) as live:
        live.apply(candidate)
        assert torch.equal(model(TOKENS).logits, loaded.model(TOKENS).logits)
    family, dense = loaded.family, loaded.model
    costs = cost_model(family.units(dense), family.architecture(dense)).of([candidate])
    assert read_record(out).measured["params"] == costs["params"].item()


def test_writing_and_healing_leave_the_library_alone(tmp_path: Path) -> None:
    loaded = tiny_loaded("llama", layers=4)
    candidate = mixed_candidate(loaded)
    library = real_library(loaded, candidate, tmp_path / "library")
    out = materialize(loaded, library, candidate, tmp_path / "out")
    heal(out, loaded, TOKENS[:4], TOKENS[4:], HealConfig(steps=2), tmp_path / "heal")
    library.verify()
