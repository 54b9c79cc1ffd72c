"""Packages of which a healing is made are missed before anything is searched or trained."""

import pytest

from evocompress import api
from evocompress.core.config import HealConfig, RunConfig
from evocompress.core.errors import ConfigError
from evocompress.healing import packages
from evocompress.healing.trained import prepare_training
from evocompress.models.loading import load
from evocompress.testing.tiny import tiny_checkpoint

WAYS = {"lora": {"train": "lora,norms"}, "adamw8bit": {"optimizer": "adamw8bit"}}


@pytest.fixture(autouse=True)
def none_installed(monkeypatch):
    monkeypatch.setattr(packages, "find_spec", lambda name: None)


@pytest.mark.parametrize("extra", WAYS)
def test_one_line_names_the_extra(extra, tmp_path):
    loaded = load(str(tiny_checkpoint(tmp_path / "model", "llama")))
    config = HealConfig(**WAYS[extra])
    with pytest.raises(ConfigError, match=rf"pip install 'evocompress\[{extra}\]'"):
        prepare_training(loaded.model, loaded.family, config)


@pytest.mark.parametrize("extra", WAYS)
def test_a_search_says_so_before_it_begins(extra, tmp_path):
    (tmp_path / "text.txt").write_text(" ".join(f"word{n % 97}" for n in range(2000)))
    settings = {
        "name": "run",
        "runs": str(tmp_path),
        "model": {"source": str(tiny_checkpoint(tmp_path / "model", "llama"))},
        "calibration": {"source": str(tmp_path / "text.txt"), "length": 32},
        "space": {"drop": {"units": ["mlp"]}, "budget": {"body_params": 0.9}},
        "search": {"name": "random"},
        "heal": WAYS[extra],
    }
    with pytest.raises(ConfigError, match=rf"pip install 'evocompress\[{extra}\]'"):
        api.search(RunConfig.model_validate(settings))
    assert not (tmp_path / "run" / "winner.json").exists()
