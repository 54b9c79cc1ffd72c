from __future__ import annotations

import pytest

from evocompress.export import FORMATS
from evocompress.export.gguf_architectures import ARCHITECTURES
from evocompress.models.loading import LoadedModel
from evocompress.testing.formats import CASES, FormatContract, candidate_of
from evocompress.testing.tiny import VARIED

OWN_HEAD_SIZE = {"gpt2", "opt"}
"""Their head size is the hidden size over the number of heads, whatever the config says, as it
is in models with norms behind the sums."""

AS_STOCK = ("gpt2", "gemma2", "gemma3_text", "phi3", "qwen3", "mixtral")
"""Types with an architecture of llama.cpp whose small models have no windows that it lacks."""

WITHOUT_BIASES = {"mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text"}


@pytest.mark.parametrize("format", FORMATS.built_in)
class TestFormats(FormatContract):
    def written(self, loaded: LoadedModel, able: list[str]) -> list[str]:
        return able if loaded.source.removeprefix("tiny:") in VARIED else able[-1:]


def refused(format: str, loaded: LoadedModel) -> set[str]:
    candidates = {case: candidate_of(loaded, levels(loaded)) for case, levels in CASES.items()}
    return {case for case, c in candidates.items() if FORMATS[format].obstacle(loaded, c)}


def test_what_each_format_refuses(loaded: LoadedModel) -> None:
    family, causal = loaded.family.model_type, loaded.family.task.causal
    after = bool(loaded.family.attention.norm_after)
    heads = {"heads"} if after or family in OWN_HEAD_SIZE else set()
    assert refused("stock", loaded) == {"lacking", "uneven", "biased"} | heads
    assert refused("hf", loaded) == set()
    padded = {"biased"} if family in WITHOUT_BIASES else set()
    # The norm behind a sub-layer that is left out alone would stay.
    padded |= {"lacking", "uneven", "biased"} if after else set()
    mixture = loaded.family.mixture is not None
    assert refused("padded", loaded) == padded
    narrower_experts = {"channels", "uneven", "biased"} if mixture else set()
    assert refused("folded", loaded) == (narrower_experts if causal else set(CASES))
    # The small Mistral and Qwen have attention windows.
    like_llama = {"lacking"} if family == "llama" and causal else set(CASES)
    assert refused("deci", loaded) == like_llama
    alike = set(CASES)
    if causal and family in AS_STOCK:
        spanning = {"heads"} if ARCHITECTURES[family].spanning else set()
        alike = refused("stock", loaded) | spanning
        # The head of the small Qwen3 is not its embedding, so that its layers must be alike.
        alike = {"lacking"} if family == "phi3" else alike
    assert refused("gguf", loaded) == (like_llama if family == "llama" else alike)
