"""Compressed checkpoints that cannot be compressed a second time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_second_round import REFUSED, write_first

from evocompress.core.errors import ModelError
from evocompress.models.loading import load
from evocompress.models.modeling import CLASSES
from evocompress.pipeline.planning.outline import outline
from evocompress.testing.tiny import tiny_checkpoint, tiny_loaded


@pytest.mark.parametrize("name", REFUSED)
def test_families_of_other_layers_are_refused_by_name(name: str, tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / name, "llama")
    config = json.loads((folder / "config.json").read_text())
    kind = f"evocompress_{name}"
    own = {"model_type": kind, "architectures": [CLASSES[name].head.__name__]}
    (folder / "config.json").write_text(json.dumps(config | own))
    for read in (load, outline):
        with pytest.raises(ModelError, match=f"compressed checkpoint of type '{name}', whose"):
            read(str(folder))


def test_a_folded_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    folder = write_first(tmp_path / "first", tiny_loaded("llama", layers=5), "folded")
    for read in (load, outline):
        with pytest.raises(ModelError, match="is of format 'folded'.*give one of format hf"):
            read(str(folder))
