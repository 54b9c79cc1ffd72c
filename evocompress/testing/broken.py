"""Checkpoints with something wrong in them, and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evocompress.core.errors import ModelError
from evocompress.models.loading import load


def edit_config(checkpoint: Path, **changes: object) -> None:
    """Changes settings in a checkpoint's config."""
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(checkpoint: Path, **tensors: torch.Tensor | None) -> None:
    """Adds tensors to a checkpoint, or takes them out."""
    path = checkpoint / "model.safetensors"
    whole = load_file(path) | tensors
    save_file({n: t for n, t in whole.items() if t is not None}, path, metadata={"format": "pt"})


def refusal(source: str | Path) -> str:
    """What is said of a model that is not loaded: one line."""
    with pytest.raises(ModelError) as caught:
        load(str(source), device="cpu")
    message = str(caught.value)
    assert "\n" not in message
    return message
