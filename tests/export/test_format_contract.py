from __future__ import annotations

import pytest

from evocompress.export import FORMATS
from evocompress.models import LoadedModel
from evocompress.testing.formats import CASES, FormatContract, candidate_of

OWN_HEAD_SIZE = {"gpt2", "opt"}
"""Their head size is the hidden size over the number of heads, whatever the config says."""

WITHOUT_BIASES = {"mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text"}


@pytest.mark.parametrize("format", FORMATS)
class TestFormats(FormatContract):
    pass


def refused(format: str, loaded: LoadedModel) -> set[str]:
    candidates = {case: candidate_of(loaded, levels(loaded)) for case, levels in CASES.items()}
    return {case for case, c in candidates.items() if FORMATS[format].obstacle(loaded, c)}


def test_what_each_format_refuses(loaded: LoadedModel) -> None:
    family = loaded.family.model_type
    heads = {"heads"} if family in OWN_HEAD_SIZE else set()
    assert refused("stock", loaded) == {"lacking", "uneven", "biased"} | heads
    assert refused("hf", loaded) == set()
    assert refused("padded", loaded) == ({"biased"} if family in WITHOUT_BIASES else set())
    assert refused("folded", loaded) == set()
    for format in ("deci", "gguf"):
        # The small Mistral and Qwen have attention windows.
        assert refused(format, loaded) == ({"lacking"} if family == "llama" else set(CASES))
