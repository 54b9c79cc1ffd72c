"""What a run depends on, and what a check before measuring leaves out."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from evocompress.core.config import HealConfig, RunConfig
from evocompress.core.files import read_json
from evocompress.core.progress import Reporter
from evocompress.core.types import Candidate
from evocompress.export import materialize, read_record
from evocompress.healing import heal
from evocompress.models import loading
from evocompress.models.families import family_of
from evocompress.pipeline.context import RunContext
from evocompress.pipeline.header_facts import genes_digest
from evocompress.pipeline.run_folder import RunFolder
from evocompress.pipeline.unmeasured_latency import unbounded
from evocompress.space.build import build_space
from evocompress.testing.tiny import tiny_checkpoint, tiny_model


def config(**changes):
    width = {"width": {"multiple_of": 8}}
    return RunConfig.model_validate(
        {"name": "n", "model": {"source": "m"}, "space": width, **changes}
    )


def test_the_digest_of_a_space_covers_all_that_gives_a_genome_its_meaning():
    model = tiny_model("llama")
    family = family_of(model)
    encoding = build_space(family.units(model), family.architecture(model), config().space).encoding
    members = tuple((*units, units[0]) for units in encoding.members)
    others = [
        replace(encoding, members=members),
        replace(encoding, levels=tuple(levels[::-1] for levels in encoding.levels)),
        replace(encoding, default=encoding.default + 1),
        replace(encoding, merges=True),
    ]
    assert len({genes_digest(each) for each in (encoding, *others)}) == 5
    assert genes_digest(replace(encoding, default=np.array(encoding.default))) == genes_digest(
        encoding
    )


def test_only_bounds_on_latencies_are_lifted():
    space = {"width": {}, "budget": {"latency": 3.5, "params": 0.5}}
    ranges = {"decode_latency": [0.2, 0.5], "flops": [0.1, 0.6], "latency": [0.5, 0.4]}
    run = config(space=space, search={"name": "nsga2", "range": ranges, "rungs": 3})
    lifted = unbounded(run)
    assert lifted.space.budget == {"latency": 1.0, "params": 0.5}
    assert lifted.search.settings == {
        "range": {"decode_latency": (0.0, 1.0), "flops": (0.1, 0.6), "latency": (0.5, 0.4)},
        "rungs": 3,
    }
    assert lifted.model_copy(update={"space": run.space, "search": run.search}) == run
    plain = config(space={"width": {}, "budget": {"params": 0.5}})
    assert unbounded(plain) == plain


@pytest.mark.parametrize("slow", [True, False])
def test_it_is_said_where_a_model_is_computed_in_another_dtype(tmp_path, monkeypatch, slow):
    folder = tiny_checkpoint(tmp_path / "model")
    tiny_model("llama", dtype=torch.bfloat16).save_pretrained(folder)
    monkeypatch.setattr(loading, "slow_on_cpu", lambda _: slow)
    run = config(model={"source": str(folder), "device": "cpu"})
    text = io.StringIO()
    reporter = Reporter(Console(file=text, width=400))
    context = RunContext(run, RunFolder(Path("none")), reporter)
    wanted = torch.float32 if slow else torch.bfloat16
    assert context.loaded.model.dtype == wanted
    assert (
        "slow at bfloat16: everything is computed in float32, and written in bfloat16"
        in text.getvalue()
    ) == slow


def test_weights_have_the_bytes_of_the_checkpoint_whatever_is_computed(tmp_path, monkeypatch):
    folder = tiny_checkpoint(tmp_path / "model")
    tiny_model("llama", dtype=torch.bfloat16).save_pretrained(folder)
    monkeypatch.setattr(loading, "slow_on_cpu", lambda _: True)
    run = config(model={"source": str(folder), "device": "cpu"})
    context = RunContext(run, RunFolder(Path("none")), Reporter(Console(file=io.StringIO())))
    predicted = context.space.cost_model.dense()["weight_bytes"]
    assert context.loaded.model.dtype == torch.float32
    out = materialize(context.loaded, None, Candidate(), tmp_path / "out")
    assert read_record(out).measured["weight_bytes"] == predicted
    assert read_json(out / "config.json")["dtype"] == "bfloat16"
    assert predicted == 2 * sum(p.numel() for p in context.loaded.model.parameters())
    batch = torch.arange(40).view(2, 20)
    heal(out, context.loaded, batch, batch, HealConfig(steps=1), tmp_path / "heal")
    healed = load_file(tmp_path / "heal" / "checkpoint" / "model.safetensors")
    assert {tensor.dtype for tensor in healed.values()} == {torch.bfloat16}
