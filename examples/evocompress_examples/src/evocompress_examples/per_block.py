"""As ``stock``, but each block is in a file of its own, for machines that run some of them.

``evocompress materialize runs/NAME --format per_block``
"""

import json
from collections import defaultdict
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from evocompress.export.stock import Stock
from evocompress.models.loading import LoadedModel


class PerBlock(Stock):
    """What the model's own class can express, in as many files as there are blocks and one."""

    def save(
        self, model: PreTrainedModel, loaded: LoadedModel, folder: Path, weights: str | None
    ) -> None:
        """Writes a checkpoint, and divides its files."""
        super().save(model, loaded, folder, weights)
        path = f"{loaded.family.layers_path}."
        files: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for whole in sorted(folder.glob("*.safetensors")):
            for name, tensor in load_file(whole).items():
                block = name.removeprefix(path).split(".")[0] if name.startswith(path) else "rest"
                files[f"block-{block}.safetensors"][name] = tensor
            whole.unlink()
        for file, tensors in files.items():
            save_file(tensors, folder / file, {"format": "pt"})
        places = {name: file for file, tensors in files.items() for name in tensors}
        text = json.dumps({"metadata": {}, "weight_map": places})
        (folder / "model.safetensors.index.json").write_text(text)


PER_BLOCK = PerBlock()
