"""Checkpoints of which layers differ compile into one graph, as dense models do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from export_cases import write
from torch import Tensor, nn

import evocompress.hf  # noqa: F401
from evocompress.core.canonical import canonical
from evocompress.core.types import DROP, Candidate, Level
from evocompress.models.loading import LoadedModel
from evocompress.testing.derived import typical_config, typical_loaded
from evocompress.testing.formats import candidate_of, reload, uneven
from evocompress.testing.probes import random_batch
from evocompress.testing.tiny import tiny_loaded

CASES = [
    ("llama", "hf"),
    *(pytest.param("llama", form, marks=pytest.mark.long) for form in ("folded", "deci")),
    *(pytest.param(name, "hf", marks=pytest.mark.long) for name in ("gemma3_text", "gpt2", "bert")),
    pytest.param("mixtral", "hf", marks=pytest.mark.long),
]

TYPES = {
    "deepseek_v3": "latent attention; a router that knows experts that are gone",
    "gpt_oss": "sinks; a mixture with biases",
    "gemma4_text sharing": "later blocks read keys and values of earlier ones",
    "nemotron_h": "one mixer in each block",
    "nemotron_h with experts": "a mixture among such",
    "gemma3": "several parts",
    "qwen3_vl": "several parts; the first blocks are given what images add",
}
DERIVED = ["deepseek_v3", *(pytest.param(n, marks=pytest.mark.long) for n in [*TYPES][1:])]


def graph_of(model: nn.Module, batch: Tensor) -> None:
    """Compile a model into one graph, which computes what it does.

    Raises:
        torch._dynamo.exc.Unsupported: It is none.
    """
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(batch)[0], model(batch)[0])


@pytest.mark.parametrize(("family", "form"), CASES)
def test_a_checkpoint_is_one_graph(family: str, form: str, tmp_path: Path) -> None:
    found = tiny_loaded(family, layers=4)
    candidate = candidate_of(found, uneven(found))
    out = write(found, candidate, tmp_path / "out", form)
    model = reload(out, found.family.task).requires_grad_(False)
    graph_of(model, random_batch(found.family, found.model))


def changed(found: LoadedModel) -> Candidate:
    """The first attention and MLP that can be are narrow, the last others gone, as is an expert."""
    units, architecture = found.family.units(found.model), found.family.architecture(found.model)
    levels: dict[str, Level] = {}
    for kind in ("attention", "mlp"):
        first = next(unit for unit in units if unit.kind == kind and unit.narrowable)
        block = first.block
        if kind == "mlp":
            levels[first.name] = Level(channels=architecture.channels[block] // 2)
        else:
            groups = architecture.kv_heads[block]
            each = architecture.heads[block] // groups
            few = (groups - 1, each) if groups > 1 else (1, each - 1)
            levels[first.name] = Level(kv_groups=few[0], group_heads=few[1])
        rest = [u for u in units if u.kind == kind and u.droppable and u != first]
        levels |= {unit.name: DROP for unit in rest[-1:]}
    mixtures = [name for name in units.experts if name not in levels]
    levels |= {units.groups(name)[0][0].name: DROP for name in mixtures[:1]}
    return canonical(levels, units)


@pytest.mark.parametrize("name", DERIVED)
def test_a_checkpoint_of_a_derived_type_is_one_graph(name: str, tmp_path: Path) -> None:
    found = typical_loaded(typical_config(name))
    found.model.float()
    found.model.config.dtype = torch.float32
    batch = random_batch(found.family, found.model)
    model = reload(write(found, changed(found), tmp_path / "out", "hf"), found.family.task)
    graph_of(model.requires_grad_(False), batch)
