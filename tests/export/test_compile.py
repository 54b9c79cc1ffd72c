"""Checkpoints of which layers differ compile into one graph, as dense models do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from export_cases import write

import evocompress.hf  # noqa: F401
from evocompress.testing.formats import candidate_of, reload, uneven
from evocompress.testing.probes import random_batch
from evocompress.testing.tiny import tiny_loaded

CASES = [
    ("llama", "hf"),
    *(pytest.param("llama", form, marks=pytest.mark.long) for form in ("folded", "deci")),
    *(pytest.param(name, "hf", marks=pytest.mark.long) for name in ("gemma3_text", "gpt2", "bert")),
    pytest.param("mixtral", "hf", marks=pytest.mark.long),
]


@pytest.mark.parametrize(("family", "form"), CASES)
def test_a_checkpoint_is_one_graph(family: str, form: str, tmp_path: Path) -> None:
    loaded = tiny_loaded(family, layers=4)
    candidate = candidate_of(loaded, uneven(loaded))
    out = write(loaded, candidate, tmp_path / "out", form)
    model = reload(out, loaded.family.task).requires_grad_(False)
    batch = random_batch(loaded.family, loaded.model)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(batch)[0], model(batch)[0])
