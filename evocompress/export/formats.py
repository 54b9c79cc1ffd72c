"""The checkpoint formats: which candidates each can express, and how it builds the model."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from transformers import PreTrainedModel

from evocompress.export.modeling_file import ModelingFile
from evocompress.export.padded import Padded
from evocompress.export.stock import Stock
from evocompress.export.weights import LevelWeights
from evocompress.models import LoadedModel
from evocompress.types import Candidate


class Format(Protocol):
    """A way to write a compressed model.

    Attributes:
        loading: Python that loads such a checkpoint, for its README; ``{path}`` and ``{auto}``, the
            class of transformers, are filled in.
        note: Paragraph for its README on what the format costs; may be empty.
    """

    loading: str
    note: str

    def obstacle(self, loaded: LoadedModel, candidate: Candidate) -> str | None:
        """What of which unit this format cannot express, after its name; ``None`` if it can."""
        ...

    def build(
        self, loaded: LoadedModel, library: LevelWeights | None, candidate: Candidate
    ) -> PreTrainedModel:
        """The compressed model, sharing tensors with the dense one; to be saved, not run."""
        ...

    def add_files(self, loaded: LoadedModel, folder: Path) -> None:
        """Adds what `save_pretrained` does not write."""
        ...


FORMATS: dict[str, Format] = {"stock": Stock(), "hf": ModelingFile(), "padded": Padded()}

AUTOMATIC = ("stock", "hf")
"""The formats that ``auto`` chooses from, in this order."""
