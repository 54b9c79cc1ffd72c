"""Models whose last layers read the keys and values of layers before them, in each format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from export_cases import write

import evocompress.hf  # noqa: F401
from evocompress.core.errors import ExportError
from evocompress.core.types import DROP, Level
from evocompress.export import FORMATS, choose_format, materialize
from evocompress.export.configs import cut_config, per_layer
from evocompress.export.layout import Block, layout
from evocompress.models.loading import LoadedModel
from evocompress.testing.derived import typical_config, typical_loaded
from evocompress.testing.formats import LevelsByEnd, assert_written, candidate_of
from evocompress.testing.plain_library import PlainLibrary

ZEROS = {"3.mlp.up_proj": Level(zeros=500)}
READER = {"4.attention": DROP}


@pytest.fixture(scope="module")
def gemma4() -> LoadedModel:
    return typical_loaded(typical_config("gemma4_text sharing"))


@pytest.mark.parametrize(
    ("format", "levels"),
    [("stock", ZEROS), ("padded", ZEROS), ("folded", ZEROS), ("hf", ZEROS | READER)],
)
def test_the_checkpoint_computes_what_the_candidate_does(
    gemma4: LoadedModel, format: str, levels: LevelsByEnd, tmp_path: Path
) -> None:
    candidate = candidate_of(gemma4, levels)
    assert_written(write(gemma4, candidate, tmp_path / "out", format), gemma4, candidate)


def test_a_config_has_no_settings_of_transformers_4_that_version_5_misreads(
    gemma4: LoadedModel, tmp_path: Path
) -> None:
    out = write(gemma4, candidate_of(gemma4, ZEROS), tmp_path / "out", "stock")
    settings = json.loads((out / "config.json").read_text())
    assert settings["rope_parameters"] == gemma4.model.config.rope_parameters
    assert "rope_scaling" not in settings


def test_layers_that_cannot_be_fewer_are_not_folded(gemma4: LoadedModel) -> None:
    with pytest.raises(ExportError, match=r"cannot leave out model\.layers\.4\.attention, because"):
        choose_format(gemma4, candidate_of(gemma4, READER), "folded")


def test_fewer_layers_share_and_differ_as_they_did(gemma4: LoadedModel) -> None:
    blocks = layout(gemma4, candidate_of(gemma4, {})).blocks
    kept: list[Block] = [block for block in blocks if block.index in (1, 2, 5)]
    cut = cut_config(gemma4.model.config, kept)
    assert cut.num_kv_shared_layers == 1
    assert [layer.head_dim for layer in cut.per_layer_config] == [16, 32, 32]
    assert cut.kv_sharing_modes == ["store", "store", "reuse"]


def test_multipliers_of_parts_are_not_of_layers() -> None:
    falcon = typical_loaded(typical_config("falcon_h1"), layers=5)
    out = layout(falcon, candidate_of(falcon, {"1": DROP})).kept
    cut = cut_config(falcon.model.config, out)
    assert (cut.num_hidden_layers, len(cut.ssm_multipliers)) == (4, 5)


def test_limits_of_time_steps_are_not_of_layers() -> None:
    mamba = typical_loaded(typical_config("mamba2"), layers=2)
    out = layout(mamba, candidate_of(mamba, {"1": DROP})).kept
    assert len(cut_config(mamba.model.config, out).time_step_limit) == 2


def test_a_config_that_its_file_does_not_keep_is_no_format(gemma4: LoadedModel) -> None:
    """The class makes the last layer another than the config says."""
    blocks = layout(gemma4, candidate_of(gemma4, {})).blocks
    cut = cut_config(gemma4.model.config, blocks[:2])
    assert per_layer(cut)["layer_types"] == ["sliding_attention"] * 2
    assert type(cut).from_dict(cut.to_dict()).layer_types[-1] == "full_attention"


@pytest.mark.parametrize("error", [KeyError("rope_theta"), NotImplementedError("no such layer")])
def test_any_failure_of_a_format_is_a_refusal_in_one_line(
    gemma4: LoadedModel, error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object) -> None:
        raise error

    candidate = candidate_of(gemma4, ZEROS)
    kind = type(error).__name__
    with monkeypatch.context() as patched:
        patched.setattr(FORMATS["stock"], "build", fail)
        with pytest.raises(ExportError) as caught:
            materialize(gemma4, PlainLibrary(gemma4), candidate, tmp_path / "out", format="stock")
        assert str(caught.value).startswith(
            f"format 'stock' cannot be built for this gemma4_text model: {kind}: "
        )
        assert not (tmp_path / "out").exists()
    monkeypatch.setattr(FORMATS["stock"], "obstacle", fail)
    with pytest.raises(ExportError) as caught:
        choose_format(gemma4, candidate, "stock")
    assert str(caught.value).startswith(
        f"format 'stock' cannot be tried for gemma4_text models: {kind}: "
    )
    assert str(caught.value).endswith(": formats 'hf', 'padded', 'folded', 'gguf' can")
    assert choose_format(gemma4, candidate) == "hf"
