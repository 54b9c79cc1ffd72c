"""What formats have in common whose folder `PreTrainedModel.save_pretrained` writes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel

from evocompress.errors import ExportError
from evocompress.export.measure import measured_costs
from evocompress.models import LoadedModel
from evocompress.sources import quiet_transformers
from evocompress.types import Candidate

LOADING = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{path}")
tokenizer = AutoTokenizer.from_pretrained("{path}")"""

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


class Pretrained:
    """Weights in safetensors, config and tokenizer, as transformers writes them."""

    loading: ClassVar[str] = LOADING

    def note(self, loaded: LoadedModel, candidate: Candidate) -> str:
        """Nothing to say."""
        return ""

    def check_weights(self, loaded: LoadedModel, candidate: Candidate, weights: str) -> None:
        """Refuse a type of weights that safetensors checkpoints do not have.

        Raises:
            ExportError: It is one that only GGUF files have.
        """
        if weights not in DTYPES:
            known = ", ".join(DTYPES)
            raise ExportError(f"only format 'gguf' has weights of type {weights}; choose {known}")

    def save(
        self, model: PreTrainedModel, loaded: LoadedModel, folder: Path, weights: str | None
    ) -> None:
        """Writes model, tokenizer and `files` into a folder.

        Args:
            model: From `build`.
            loaded: The dense model.
            folder: An empty one.
            weights: A key of `DTYPES`; ``None`` keeps the model's.
        """
        if weights is not None:
            nn.Module.to(model, DTYPES[weights])
            model.config.dtype = DTYPES[weights]
        with quiet_transformers():
            model.save_pretrained(folder)
            loaded.tokenizer.save_pretrained(folder)
        for source in self.files(loaded):
            shutil.copyfile(source, folder / source.name)

    def name_of(self, loaded: LoadedModel, candidate: Candidate) -> Callable[[str], str] | None:
        """What a parameter is called in the dense model; ``None`` where some have other shapes."""
        return None

    def files(self, loaded: LoadedModel) -> tuple[Path, ...]:
        """Files to copy into the folder: none where the class comes with transformers."""
        return ()

    def measured(self, folder: Path, loaded: LoadedModel) -> dict[str, int]:
        """The costs that can be counted in the files; see `measured_costs`."""
        return measured_costs(folder, loaded.family)
