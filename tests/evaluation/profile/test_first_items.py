"""The library that widths are timed with: the first heads and channels of each sub-layer."""

import pytest
import torch

from evocompress.compression.live_model import LiveModel
from evocompress.core.config import LatencyConfig
from evocompress.core.errors import ConfigError, LibraryError
from evocompress.core.types import DROP, Candidate, Level
from evocompress.evaluation.profile import profile
from evocompress.evaluation.profile.first_items import FirstItems
from evocompress.models.families.branches import ABSENT
from evocompress.testing.probes import answer, random_batch
from evocompress.testing.staged import require_packages
from evocompress.testing.tiny import NAMES, declared, tiny_loaded

IDS = torch.arange(12)[None]


def test_the_first_query_heads_of_the_first_groups_stay():
    loaded = tiny_loaded("llama")
    block = loaded.model.model.layers[1]
    found = FirstItems(loaded).load("model.layers.1.attention", Level(kv_groups=2, group_heads=1))
    assert found["groups"].tolist() == [0, 1]
    assert found["items"].tolist() == [0, 2]
    weight = block.self_attn.o_proj.weight
    assert torch.equal(found["weight"], torch.cat([weight[:, :16], weight[:, 32:48]], dim=1))


def test_the_first_channels_stay():
    loaded = tiny_loaded("gpt2")
    found = FirstItems(loaded).load("transformer.h.0.mlp", Level(channels=40))
    assert found["groups"].tolist() == [0]
    assert found["items"].tolist() == list(range(40))
    assert torch.equal(found["weight"], loaded.model.transformer.h[0].mlp.c_proj.weight[:40])


def test_only_widths_can_be_asked_for():
    library = FirstItems(tiny_loaded())
    with pytest.raises(LibraryError, match=r"model\.layers\.0\.mlp at drop cannot be timed"):
        library.load("model.layers.0.mlp", DROP)
    with pytest.raises(LibraryError, match="cannot be timed"):
        library.load("model.layers.0.mlp.up_proj", Level(zeros=3), Level(channels=40))


def test_layers_that_differ_in_size_are_not_timed(tmp_path):
    require_packages("resnet")
    config = LatencyConfig(table=tmp_path / "table.json")
    with pytest.raises(ConfigError, match="a resnet model, whose layers differ in size"):
        profile(tiny_loaded("resnet"), config, progress=lambda *_: None)


@pytest.mark.parametrize("model_type", [n for n in NAMES if declared(n).attention != ABSENT])
def test_every_family_runs_narrow_and_becomes_dense_again(model_type):
    loaded = tiny_loaded(model_type)
    model = loaded.model
    family = loaded.family
    batch = random_batch(family, model)
    before = answer(family, model, batch)
    heads = family.architecture(model)
    narrow = Level(kv_groups=1, group_heads=heads.heads[1] // heads.kv_heads[1])
    block = f"{family.layers_path}.1"
    candidate = Candidate(((f"{block}.attention", narrow), (f"{block}.mlp", Level(channels=64))))
    with LiveModel(loaded, FirstItems(loaded)) as live:
        live.apply(candidate)
        found = answer(family, model, batch)
        assert torch.isfinite(found).all() and not torch.equal(found, before)
    assert torch.equal(answer(family, model, batch), before)
