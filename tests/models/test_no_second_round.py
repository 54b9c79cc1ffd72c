"""Compressed checkpoints that cannot be compressed a second time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_second_round import REFUSED, write_first

from evocompress.core.errors import ModelError
from evocompress.core.types import DROP, Candidate
from evocompress.export import materialize
from evocompress.models.loading import load
from evocompress.pipeline.planning.outline import outline
from evocompress.testing.tiny import (
    MIXTURES,
    tiny_checkpoint,
    tiny_loaded,
)


@pytest.mark.parametrize("name", REFUSED)
def test_families_of_other_layers_are_refused_by_name(name: str, tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / name, "llama")
    config = json.loads((folder / "config.json").read_text())
    kind = f"evocompress_{name}"
    (folder / "config.json").write_text(json.dumps(config | {"model_type": kind}))
    for read in (load, outline):
        with pytest.raises(ModelError, match=f"compressed checkpoint of type '{name}', which"):
            read(str(folder))


@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures_are_refused_by_name(name: str, tmp_path: Path) -> None:
    dense = tiny_loaded(name)
    candidate = Candidate((("model.layers.1.mlp.experts.0", DROP),))
    folder = materialize(dense, None, candidate, tmp_path / "first", format="hf")
    for read in (load, outline):
        with pytest.raises(ModelError, match=rf"a compressed checkpoint of a mixture .*{name}\),"):
            read(str(folder))


def test_a_folded_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    folder = write_first(tmp_path / "first", tiny_loaded("llama", layers=5), "folded")
    for read in (load, outline):
        with pytest.raises(ModelError, match="is of format 'folded'.*give one of format hf"):
            read(str(folder))
