"""What formats have in common whose folder `PreTrainedModel.save_pretrained` writes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import PreTrainedModel

from evocompress.core.errors import ExportError, one_line
from evocompress.core.types import Candidate
from evocompress.export.companions import add_tokenizer_files, copy_companions, settle_code
from evocompress.export.measure import measured_costs
from evocompress.export.running import Programs
from evocompress.export.safetensors_size import safetensors_layout
from evocompress.export.transformers4 import add_old_settings
from evocompress.export.weights import has_fused_experts, with_fused_experts
from evocompress.models.checkpoints import quiet_transformers
from evocompress.models.families.uneven import DERIVED
from evocompress.models.loading import LoadedModel
from evocompress.space.costs import FileLayout

LOADING = """from transformers import {auto}

model = {auto}.from_pretrained("{path}")"""

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


class Pretrained:
    """Weights in safetensors, config and tokenizer, as transformers writes them.

    Attributes:
        adds_zeros: Some parameters have other shapes than the candidate's.
    """

    loading: ClassVar[str] = LOADING
    programs: ClassVar[Programs] = {}
    adds_zeros: ClassVar[bool] = False

    def check_package(self) -> None:
        """Nothing is needed."""

    def note(self, loaded: LoadedModel, candidate: Candidate) -> str:
        """Nothing to say."""
        return ""

    def check_weights(self, loaded: LoadedModel, candidate: Candidate, weights: str) -> None:
        """Refuse a type of weights that safetensors checkpoints do not have."""
        if weights not in DTYPES:
            known = ", ".join(DTYPES)
            raise ExportError(f"only format 'gguf' has weights of type {weights}; choose {known}")

    def save(
        self, model: PreTrainedModel, loaded: LoadedModel, folder: Path, weights: str | None
    ) -> None:
        """Writes model, tokenizer, companions and `files`; see `Format.save`."""
        if weights is not None:
            nn.Module.to(model, DTYPES[weights])
            model.config.dtype = DTYPES[weights]
            _check_finite(model, weights)
        try:
            with quiet_transformers():
                save_weights(model, folder)
        except StrictDataclassError as error:
            name = type(model.config).__name__
            raise ExportError(f"transformers writes no such {name}: {one_line(error)}") from None
        add_tokenizer_files(loaded, folder)
        copy_companions(loaded, folder)
        for source in self.files(loaded):
            shutil.copyfile(source, folder / source.name)
        settle_code(loaded, folder)

    def file_layout(self, loaded: LoadedModel, *, uneven: bool) -> FileLayout:
        """That of a file with the dense model's names."""
        return safetensors_layout(loaded)

    def name_of(self, loaded: LoadedModel, candidate: Candidate) -> Callable[[str], str]:
        """What a parameter is called in the dense model."""
        return str

    def files(self, loaded: LoadedModel) -> tuple[Path, ...]:
        """Files to copy into the folder: none where the class comes with transformers."""
        return ()

    def measured(self, folder: Path, loaded: LoadedModel, candidate: Candidate) -> dict[str, int]:
        """The costs that can be counted in the files; see `measured_costs`."""
        return measured_costs(folder, loaded, self.name_of(loaded, candidate))


def save_weights(model: PreTrainedModel, folder: Path) -> None:
    """Writes a model and its config into a folder.

    Under the names that its modules have, by which costs are counted. Experts of transformers' own
    class get the tensors and names that the type's own checkpoints have. The config has the
    settings of transformers 4 as well, where that could read it.
    """
    if model.config.model_type == DERIVED:
        model.save_pretrained(folder, save_original_format=False)
        return
    model = with_fused_experts(model)
    model.save_pretrained(folder, save_original_format=has_fused_experts(model))
    add_old_settings(folder, model.config)


def _check_finite(model: PreTrainedModel, weights: str) -> None:
    for name, tensor in model.named_parameters():
        if not torch.isfinite(tensor).all():
            raise ExportError(f"{name} has weights beyond the range of {weights}: choose bfloat16")
