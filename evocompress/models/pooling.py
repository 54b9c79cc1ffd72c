"""How an embedding model pools, by the files that sentence-transformers puts beside it."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from evocompress.core.errors import ModelError
from evocompress.models.checkpoint_files import read_checkpoint_json, read_file_as
from evocompress.models.tasks import Pooling

MODULES = "modules.json"
POOLING = "1_Pooling/config.json"
FLAG = "pooling_mode_"
POOLINGS: dict[str, Pooling] = {
    "mean": "mean",
    "mean_tokens": "mean",
    "lasttoken": "last",
    "cls": "first",
    "cls_token": "first",
}
"""By the names that sentence-transformers gives them."""


class Module(BaseModel):
    """A step of sentence-transformers."""

    type: str


def pooling_of(folder: Path) -> Pooling | None:
    """How an embedding model's files for sentence-transformers say that it pools, if they do.

    Raises:
        ModelError: Otherwise than is supported, or they have more steps than pooling.
    """
    _check_modules(folder / MODULES)
    path = folder / POOLING
    if not path.is_file():
        return None
    pooling = read_checkpoint_json(path)
    flags = [key.removeprefix(FLAG) for key in pooling if key.startswith(FLAG)]
    modes = {flag for flag in flags if pooling[FLAG + flag] is True}
    if "pooling_mode" in pooling:
        modes |= {str(pooling["pooling_mode"])}
    (mode, *others) = sorted(modes) or ["mean"]
    if others or mode not in POOLINGS:
        raise ModelError(
            f"{path} asks for embeddings by {' and '.join((mode, *others))}, which is not "
            "supported: only the mean over the tokens, the first token, or a decoder's last token "
            "is"
        )
    return POOLINGS[mode]


def _check_modules(path: Path) -> None:
    """Refuse steps of sentence-transformers that would be left out."""
    modules = read_file_as(path, list[Module]) if path.is_file() else []
    kinds = {module.type.rsplit(".", 1)[-1] for module in modules}
    if others := sorted(kinds - {"Transformer", "Pooling", "Normalize"}):
        raise ModelError(
            f"{path} puts {' and '.join(others)} behind the model, which is not supported: only "
            "pooling and normalization are"
        )
