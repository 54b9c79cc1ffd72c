"""The proxy's value of a candidate is the divergence of its written checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from export_cases import mixed_candidate
from transformers import AutoModelForCausalLM

import evocompress.hf  # noqa: F401
from evocompress.apply import LiveModel
from evocompress.config import HealConfig, LibraryConfig, ProxyConfig
from evocompress.costs import cost_model
from evocompress.evaluation.quality import heldout_quality
from evocompress.export import materialize, read_record
from evocompress.heal import heal
from evocompress.library import Library, build_library
from evocompress.models import LoadedModel
from evocompress.proxies.kl import DivergenceProxy
from evocompress.testing.formats import candidate_of, with_zeros
from evocompress.testing.tiny import tiny_loaded
from evocompress.types import DROP, Candidate, Evaluate, Level

TOKENS = torch.randint(1, 240, (6, 24), generator=torch.Generator().manual_seed(5))


def real_library(
    loaded: LoadedModel, candidate: Candidate, path: Path, config: LibraryConfig | None = None
) -> Library:
    wanted = {name: (level,) for name, level in candidate.levels if not level.drop}
    return build_library(loaded, wanted, TOKENS, "tokens", config or LibraryConfig(), path, batch=2)


def test_proxy_equals_the_written_checkpoint(loaded: LoadedModel, tmp_path: Path) -> None:
    candidate = mixed_candidate(loaded)
    library = real_library(loaded, candidate, tmp_path / "library")
    out = materialize(loaded, library, candidate, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(out)
    everything = ProxyConfig(top_k=loaded.model.config.vocab_size)
    with LiveModel(loaded, library) as live:
        proxy = DivergenceProxy(live, TOKENS.split(2), everything)
        value = proxy.evaluate([Evaluate(candidate, (0, 1, 2))])[0].mean
        live.apply(candidate)
        assert torch.equal(model(TOKENS).logits, loaded.model(TOKENS).logits)
    quality = heldout_quality(loaded.model, {"written": model}, TOKENS, batch=2)["written"]
    assert value > 0.1
    assert quality.kl == pytest.approx(value, rel=1e-4)


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
