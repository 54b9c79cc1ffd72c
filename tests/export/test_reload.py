from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from export_cases import ZeroingLibrary, applied, mixed_candidate

from evocompress.core.errors import EvoCompressError, ExportError, ModelError
from evocompress.export import materialize
from evocompress.export.reload import read_checkpoint
from evocompress.models.loading import LoadedModel
from evocompress.testing.probes import answer, assert_equal, random_batch
from evocompress.testing.tiny import tiny_model


@pytest.fixture
def checkpoint(llama: LoadedModel, tmp_path: Path) -> Path:
    library = ZeroingLibrary(llama.model)
    return materialize(llama, library, mixed_candidate(llama), tmp_path / "out")


def refusal(path: Path, like: LoadedModel) -> str:
    with pytest.raises(ModelError) as caught:
        read_checkpoint(path, like.model)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_what_was_written_comes_back_ready_to_be_measured(
    loaded: LoadedModel, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    library, candidate = ZeroingLibrary(loaded.model), mixed_candidate(loaded)
    out = materialize(loaded, library, candidate, tmp_path / "out")
    capfd.readouterr()
    model = read_checkpoint(out, loaded.model)
    assert capfd.readouterr() == ("", "")
    assert not model.training
    batch, expected = random_batch(loaded.family, model), applied(loaded, library, candidate)
    assert_equal(answer(loaded.family, model, batch), answer(loaded.family, expected, batch))


def test_the_dtype_is_the_other_models(checkpoint: Path) -> None:
    like = tiny_model("llama", dtype=torch.bfloat16)
    model = read_checkpoint(checkpoint, like)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_truncated_weights_are_named(llama: LoadedModel, checkpoint: Path, kept: int) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert f"{path} is damaged or truncated" in refusal(checkpoint, llama)


@pytest.mark.parametrize("place", [0.1, 0.5, 0.99])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "candidate.json"]
)
def test_what_was_changed_since_it_was_written_is_named(
    llama: LoadedModel, checkpoint: Path, name: str, place: float
) -> None:
    path = checkpoint / name
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(EvoCompressError, match=f"^{path} (was changed|is damaged)"):
        read_checkpoint(checkpoint, llama.model)


def test_a_users_own_edit_is_named_and_can_be_meant(llama: LoadedModel, checkpoint: Path) -> None:
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 0.1}))
    with pytest.raises(ExportError, match='config.json was changed since.*remove "files" and'):
        read_checkpoint(checkpoint, llama.model)
    record = checkpoint / "candidate.json"
    data = json.loads(record.read_text())
    record.write_text(json.dumps({k: data[k] for k in data if k not in ("files", "xxh3")}))
    assert read_checkpoint(checkpoint, llama.model).config.rms_norm_eps == 0.1


def test_files_that_were_added_or_removed_are_named(llama: LoadedModel, checkpoint: Path) -> None:
    (checkpoint / "NOTES.md").write_text("mine")  # nobody reads it
    read_checkpoint(checkpoint, llama.model)
    (checkpoint / "chat_template.jinja").write_text("{}")
    with pytest.raises(ExportError, match="chat_template.jinja is not what was written"):
        read_checkpoint(checkpoint, llama.model)
    (checkpoint / "chat_template.jinja").unlink()
    (checkpoint / "generation_config.json").unlink()
    with pytest.raises(ExportError, match="generation_config.json was removed"):
        read_checkpoint(checkpoint, llama.model)


def test_missing_files_are_named(llama: LoadedModel, checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    assert "lacks model.safetensors" in refusal(checkpoint, llama)
    assert "has no config.json" in refusal(tmp_path / "nothing", llama)


def test_a_config_that_fits_no_weights_is_told(llama: LoadedModel, checkpoint: Path) -> None:
    path = checkpoint / "config.json"
    config = json.loads(path.read_text())
    del config["per_layer_config"]
    path.write_text(json.dumps(config))
    (checkpoint / "candidate.json").unlink()  # with it the change is named
    assert "lacks" in refusal(checkpoint, llama)
