"""Whether a GGUF file holds a language model, and nothing that reading it would leave out.

transformers reads the tensors that it knows the names of, as of a language model, and says nothing
of the others: a classifier, an embedding model and scaled rotary embeddings would be lost.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from evocompress.errors import ModelError, one_line

KNOWN = re.compile(r"(token_embd|position_embd|output|output_norm)\.(weight|bias)|blk\.(\d+)\..+")
"""Tensors of a language model; which of a block's are read is told when it is loaded."""


def check_language_model(path: Path) -> None:
    """Refuse a GGUF file of another kind of model, or with tensors that would be left out.

    Raises:
        ModelError: It is such, or cannot be read.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        kind = _value(reader, "general.architecture")
        names = [tensor.name for tensor in reader.tensors]
        blocks = _value(reader, f"{kind}.block_count")
        pooled = _value(reader, f"{kind}.pooling_type")
        causal = _value(reader, f"{kind}.attention.causal")
    except Exception as error:  # parsers of a damaged file fail with any type of error
        raise ModelError(f"{path} is damaged, replace it: {one_line(error)}") from None
    if pooled or causal is False:
        raise ModelError(
            f"{path} is an embedding model or a reranker (pooling_type, attention.causal), and "
            "GGUF files are read as language models only: give its checkpoint of safetensors"
        )
    for name in names:
        known = KNOWN.fullmatch(name)
        if known is None or (known[3] and blocks is not None and int(known[3]) >= blocks):
            raise ModelError(
                f"{path} holds {name}, which is not read from GGUF files, so that another model "
                "would be compressed: give its checkpoint of safetensors"
            )


def _value(reader: Any, key: str) -> Any:
    """A piece of metadata; ``None`` where there is none."""
    field = reader.get_field(key)
    return None if field is None else field.contents()
