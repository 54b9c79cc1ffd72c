"""What a format cannot express: the unit, the reason and who can, in one line."""

from __future__ import annotations

import pytest

from evocompress.core.errors import ExportError
from evocompress.core.types import DROP, Level
from evocompress.export import choose_format
from evocompress.models.loading import LoadedModel
from evocompress.testing.formats import LevelsByEnd, candidate_of, even_heads, heads
from evocompress.testing.tiny import tiny_loaded


def refusal(loaded: LoadedModel, levels: LevelsByEnd, format: str) -> str:
    with pytest.raises(ExportError) as caught:
        choose_format(loaded, candidate_of(loaded, levels), format)
    return str(caught.value)


@pytest.mark.parametrize("name", ["mlp", "attention"])
def test_a_single_narrow_unit(llama: LoadedModel, name: str) -> None:
    levels = {f"2.{name}": {"mlp": Level(channels=64), "attention": heads(llama)[0]}[name]}
    assert refusal(llama, levels, "stock") == (
        f"format 'stock' cannot make model.layers.2.{name} narrower than in other blocks: "
        "formats 'hf', 'padded', 'folded', 'deci', 'gguf' can"
    )
    assert choose_format(llama, candidate_of(llama, levels)) == "hf"


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_heads_whose_size_would_change(family: str) -> None:
    loaded = tiny_loaded(family, layers=4)
    text = refusal(loaded, even_heads(loaded), "stock")
    assert f"{loaded.family.layers_path}.0.attention, because no" in text
    assert "of hidden size 64 has 2 heads of 16: formats 'hf', 'padded', 'folded' can" in text


@pytest.mark.parametrize(
    ("family", "able"),
    [
        ("llama", "formats 'hf', 'padded', 'folded', 'deci', 'gguf'"),
        ("qwen3", "formats 'hf', 'folded'"),
    ],
)
def test_a_bias_that_the_class_does_not_have(family: str, able: str) -> None:
    loaded = tiny_loaded(family, layers=4)
    levels = {f"{i}.mlp": Level(channels=64, bias=True) for i in range(4)}
    text = refusal(loaded, levels, "stock")
    assert text.endswith(f"the output of model.layers.0.mlp a bias: {able} can")
    assert choose_format(loaded, candidate_of(loaded, levels)) == "hf"


def test_auto_never_pads(llama: LoadedModel) -> None:
    levels = {f"{i}.attention": DROP for i in range(4)}
    assert refusal(llama, levels, "auto") == (
        "format 'hf' cannot leave out every attention, model.layers.0.attention among them: "
        "format 'padded' can"
    )
    assert choose_format(llama, candidate_of(llama, levels), "padded") == "padded"
