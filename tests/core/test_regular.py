"""What is no regular file is refused in one line, where reading it would wait for ever."""

import os
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from evocompress.core.config_file import load_config
from evocompress.core.errors import ConfigError, DataError, EvoCompressError, ModelError, RunError
from evocompress.core.files import check_sealed, checksum_of, read_json
from evocompress.core.progress import Silent
from evocompress.core.regular import check_regular
from evocompress.evaluation.calibration.sources import check_present, token_streams
from evocompress.pipeline.journal import Journal
from evocompress.pipeline.journal_memory import Memory, last_step
from evocompress.pipeline.planning import outline
from evocompress.testing.broken import refusal
from evocompress.testing.tiny import tiny_checkpoint, tiny_tokenizer


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def test_pipes_sockets_and_devices_are_told_apart_from_files(tmp_path: Path, pipe: Path) -> None:
    (tmp_path / "link").symlink_to(pipe)
    here = socket.socket(socket.AF_UNIX)
    here.bind(str(tmp_path / "s"))
    others = {pipe: "pipe", tmp_path / "link": "pipe", tmp_path / "s": "socket"}
    for path, kind in (others | {Path(os.devnull): "device"}).items():
        with pytest.raises(RunError, match=f"{path} is a {kind}, not a file"):
            check_regular(path)
    here.close()
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file", tmp_path / "missing", Path("a\0b")):
        check_regular(path)


@pytest.mark.parametrize("ending", ["", ".txt", ".txt.gz", ".jsonl", ".csv", ".parquet"])
def test_texts(pipe: Path, ending: str) -> None:
    source = pipe.rename(f"{pipe}{ending}")
    for key in ("calibration.source", "calibration.heldout_source"):
        with pytest.raises(DataError, match="is a pipe"):
            check_present(str(source), key)
    with pytest.raises(DataError, match="is a pipe"):
        next(token_streams(str(source), tiny_tokenizer()))


def test_files_of_tokens(tmp_path: Path, pipe: Path) -> None:
    folder = tmp_path / "tokens"
    folder.mkdir()
    save_file({"tokens": torch.arange(9)}, folder / "a.safetensors")
    pipe.rename(folder / "b.safetensors")
    with pytest.raises(DataError, match="b.safetensors is a pipe"):
        check_present(str(folder), "calibration.source")
    with pytest.raises(DataError, match="b.safetensors is a pipe"):
        list(token_streams(str(folder), tiny_tokenizer()))


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"]
)
def test_files_of_a_model(tmp_path: Path, pipe: Path, name: str) -> None:
    folder = tiny_checkpoint(tmp_path / "model")
    (folder / name).unlink(missing_ok=True)
    pipe.rename(folder / name)
    assert refusal(folder).endswith(f"{name} is a pipe, not a file: put a regular file there")
    if name == "config.json":
        for source in (folder, folder / name):
            with pytest.raises(ModelError, match="config.json is a pipe"):
                outline(str(source))


def test_models_that_are_one_file(pipe: Path) -> None:
    assert "is a pipe" in refusal(pipe.rename(f"{pipe}.gguf"))


def test_run_files(pipe: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a pipe"):
        load_config(pipe)
    (tmp_path / "run.yaml").write_text("space: pipe\n")
    with pytest.raises(ConfigError, match="is a pipe"):
        load_config(tmp_path / "run.yaml")


@pytest.mark.parametrize(
    "opened",
    [
        Memory,
        last_step,
        read_json,
        checksum_of,
        Silent().log_to,
        lambda path: Journal(path, {}),
        lambda path: check_sealed(path, "restore it"),
    ],
)
def test_files_of_a_run(pipe: Path, opened) -> None:
    with pytest.raises(EvoCompressError, match="is a pipe|is no regular file"):
        opened(pipe)
