"""Formats from the command line: for whom, why, and what is refused before anything is written."""

import json

import pytest
from test_cli_structured import call, write_run

from evocompress.core.files import read_json
from evocompress.testing.gguf_reference import GgufReference
from evocompress.testing.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished search in a space that fits gguf, with a healed checkpoint."""
    folder = tmp_path_factory.mktemp("formats")
    file = write_run(folder, tiny_checkpoint(folder / "model"))
    with pytest.MonkeyPatch.context() as patch:
        words = ("space.drop={}", "space.fits=gguf", "space.budget={body_params: 0.5}")
        assert call(patch, "search", file, *words) == 0
        words = ("--for", "transformers")
        assert call(patch, "materialize", folder / "runs" / "trial", *words) == 0
        assert call(patch, "heal", folder / "runs" / "trial", "heal.steps=1", *HEAL) == 0
    return folder / "runs" / "trial"


HEAL = ("heal.validation_sequences=2", "heal.batch=1", "heal.accumulate=1")


@pytest.mark.parametrize(
    ("words", "format", "why"),
    [
        ((), "gguf", "format 'gguf', as space.fits says; heal and evaluate read another: --for tr"),
        (("--format", "hf"), "hf", ""),
        (("--healed",), "gguf", "format 'gguf', as space.fits says"),
        (("--for", "llama.cpp"), "gguf", "format 'gguf' for llama.cpp, run by"),
        (("--for", "vllm"), "folded", "; format 'stock' cannot"),
        (("--for", "vllm", "--format", "deci"), "deci", "vLLM's DeciLM class"),
        (
            ("--for", "llama.cpp", "--healed"),
            "gguf",
            "llama.cpp's architecture of the type, or deci",
        ),
    ],
)
def test_a_format_for_a_program(monkeypatch, capsys, run, tmp_path, words, format, why):
    assert call(monkeypatch, "materialize", run, *words, "--out", tmp_path / "out") == 0
    assert why in capsys.readouterr().err
    record = json.loads((tmp_path / "out" / "candidate.json").read_text())
    assert (record["format"], record["id"]) == (format, read_json(run / "winner.json")["id"])
    if format == "gguf":
        assert GgufReference(tmp_path / "out" / "model.gguf").tensors
    healed = "healed by a distillation" in (tmp_path / "out" / "README.md").read_text()
    assert healed == ("--healed" in words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--for", "tgi"), "unknown program 'tgi'"),
        (("--for", "vllm", "--format", "gguf"), "vllm does not load format 'gguf'"),
        (("--format", "onnx"), "unknown format 'onnx'"),
        (("--weights", "q2_k"), "unknown weights 'q2_k'"),
        (("--weights", "q8_0", "--format", "hf"), "only format 'gguf' has weights"),
        (("--weights", "q8_0", "--for", "llama.cpp"), "no multiple of 32"),
        (("--healed", "--candidate", "uniform"), "--healed and --candidate exclude each other"),
    ],
)
def test_bad_input_is_one_line(monkeypatch, run, tmp_path, words, message):
    code = call(monkeypatch, "materialize", run, *words, "--out", tmp_path / "out")
    assert isinstance(code, str) and message in code and "\n" not in code
    assert not list(tmp_path.iterdir())


def test_healed_wants_another_place(monkeypatch, run):
    assert "--out" in call(monkeypatch, "materialize", run, "--healed")


@pytest.mark.parametrize(
    ("fits", "message"),
    [("onnx", "unknown format 'onnx'"), ("stock", "can express nothing of this space")],
)
def test_a_space_that_does_not_fit(monkeypatch, run, tmp_path, fits, message):
    file = write_run(tmp_path, run.parent.parent / "model")
    code = call(monkeypatch, "search", file, f"space.fits={fits}")
    assert message in code and not (tmp_path / "runs").exists()
