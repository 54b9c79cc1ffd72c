"""Models of several parts: the language model is compressed, and the rest is written as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from export_cases import write
from torch import Tensor

import evocompress.hf  # noqa: F401
from evocompress.compression.live_model import LiveModel
from evocompress.core.types import DROP, Candidate, Level
from evocompress.export import FORMATS, read_record
from evocompress.models.loading import LoadedModel, load
from evocompress.space.costs import cost_model
from evocompress.testing.formats import (
    assert_written,
    candidate_of,
    heads,
    reload,
    with_bias,
    with_zeros,
)
from evocompress.testing.plain_library import PlainLibrary
from evocompress.testing.wholes import SETTINGS, tiny_whole, with_image

NEW_TOKENS = 8


@pytest.fixture(params=SETTINGS)
def loaded(request: pytest.FixtureRequest) -> LoadedModel:
    return tiny_whole(request.param)


def written(loaded: LoadedModel, out: Path, format: str = "hf") -> tuple[Path, Candidate]:
    """A checkpoint of which each block is another, and the second one gone."""
    candidate = candidate_of(loaded, with_zeros(loaded, with_bias(loaded)))
    return write(loaded, candidate, out, format), candidate


def continued(model: Any, model_type: str, *, cache: bool) -> Tensor:
    """What a model writes behind text with an image."""
    tokens: Tensor = model.generate(
        **with_image(model_type),
        **{"max_new_tokens": NEW_TOKENS, "do_sample": False, "use_cache": cache},
        **{"eos_token_id": None, "pad_token_id": 0},
    )
    return tokens


def continued_in_memory(loaded: LoadedModel, candidate: Candidate) -> Tensor:
    """The same of the live model, whose caches know of no dropped attention."""
    with LiveModel(loaded, PlainLibrary(loaded)) as live:
        live.apply(candidate)
        return continued(loaded.model, loaded.family.model_type, cache=False)


def test_a_checkpoint_reads_text_and_images(loaded: LoadedModel, tmp_path: Path) -> None:
    out, candidate = written(loaded, tmp_path / "out")
    assert_written(out, loaded, candidate)
    model, name = reload(out, loaded.family.task), loaded.family.model_type
    expected = continued_in_memory(loaded, candidate)
    for cache in (False, True):
        assert torch.equal(continued(model, name, cache=cache), expected)
    dense = continued(loaded.model, name, cache=True)
    blind = loaded.model.generate(with_image(name)["input_ids"], max_new_tokens=NEW_TOKENS)
    assert not torch.equal(dense, expected) and not torch.equal(dense, blind)


@pytest.mark.parametrize("name", ["gemma3", "mistral3"])
def test_the_language_model_is_folded(name: str, tmp_path: Path) -> None:
    """The parts around it see the layers that are left; Qwen3-VL's must keep their numbers."""
    loaded = tiny_whole(name)
    out, candidate = written(loaded, tmp_path / "out", "folded")
    assert_written(out, loaded, candidate)
    model = reload(out, loaded.family.task)
    assert model.config.get_text_config().num_hidden_layers == 2
    expected = continued_in_memory(loaded, candidate)
    assert torch.equal(continued(model, name, cache=True), expected)


def test_what_is_no_block_stays_to_the_last_bit(loaded: LoadedModel, tmp_path: Path) -> None:
    out, _ = written(loaded, tmp_path / "out")
    before, after = loaded.model.state_dict(), reload(out, loaded.family.task).state_dict()
    path = f"{loaded.family.layers_path}."
    others = {name for name in before if not name.startswith(path)}
    assert others == {name for name in after if not name.startswith(path)}
    assert any("vision" in name or "visual" in name for name in others)
    assert all(torch.equal(before[name], after[name]) for name in others)


def test_costs_are_those_of_the_cost_model(loaded: LoadedModel, tmp_path: Path) -> None:
    out, candidate = written(loaded, tmp_path / "out")
    family, model = loaded.family, loaded.model
    costs = cost_model(family.units(model), family.architecture(model)).of([candidate])
    record = read_record(out)
    assert record.measured == {name: costs[name].item() for name in record.measured}


def test_it_can_be_compressed_again(loaded: LoadedModel, tmp_path: Path) -> None:
    out, _ = written(loaded, tmp_path / "first")
    first = load(str(out), device="cpu")
    assert first.family.task == loaded.family.task
    levels = {"0.attention": Level(kv_groups=1, group_heads=1), "2.attention": DROP}
    candidate = candidate_of(first, levels | {"0.mlp": Level(channels=30)})
    assert_written(write(first, candidate, tmp_path / "second"), first, candidate)


def test_a_stock_checkpoint_has_fewer_blocks(tmp_path: Path) -> None:
    loaded = tiny_whole("gemma3")
    candidate = candidate_of(
        loaded, {"1": DROP, **{f"{i}.mlp": Level(channels=72) for i in (0, 2, 3)}}
    )
    out = write(loaded, candidate, tmp_path / "out", "stock")
    model = reload(out, loaded.family.task)
    assert type(model) is type(loaded.model)
    assert_written(out, loaded, candidate)
    tokens = continued(model, "gemma3", cache=True)
    assert torch.equal(tokens, continued_in_memory(loaded, candidate))


def test_stock_keeps_all_blocks_where_images_enter_some_by_their_number() -> None:
    loaded = tiny_whole("qwen3_vl")
    obstacle = FORMATS["stock"].obstacle(loaded, candidate_of(loaded, {"1": DROP}))
    assert obstacle is not None and "adds what it sees in images to the first blocks" in obstacle
    assert FORMATS["stock"].obstacle(loaded, candidate_of(loaded, {})) is None


def test_folded_layers_keep_their_numbers_where_a_block_has_lost_its_mlp_alone(
    tmp_path: Path,
) -> None:
    loaded, folded = tiny_whole("qwen3_vl"), FORMATS["folded"]
    for gone in ("1", "1.attention"):
        obstacle = folded.obstacle(loaded, candidate_of(loaded, {gone: DROP}))
        assert obstacle is not None and "adds what it sees in images" in obstacle
    candidate = candidate_of(loaded, {"1.mlp": DROP})
    out = write(loaded, candidate, tmp_path / "out", "folded")
    tokens = continued(reload(out, loaded.family.task), "qwen3_vl", cache=True)
    assert torch.equal(tokens, continued_in_memory(loaded, candidate))


def test_a_padded_checkpoint_reads_text_and_images(loaded: LoadedModel, tmp_path: Path) -> None:
    levels = {"0.mlp": Level(channels=40), "1.attention": heads(loaded)[0], "2": DROP}
    candidate = candidate_of(loaded, levels)
    out = write(loaded, candidate, tmp_path / "out", "padded")
    assert_written(out, loaded, candidate)
    name = loaded.family.model_type
    tokens = continued(reload(out, loaded.family.task), name, cache=True)
    assert torch.equal(tokens, continued_in_memory(loaded, candidate))
