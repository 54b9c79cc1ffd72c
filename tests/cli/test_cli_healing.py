"""The ways of healing from the command line, on the checkpoint of one run."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from run_files import small_run

from evocompress import api
from evocompress.cli import commands as cli
from evocompress.core.config import RunConfig
from evocompress.testing.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("healing")
    tiny_checkpoint(home / "model")
    run = api.search(RunConfig.model_validate(small_run(home)))
    api.materialize(run)
    return run


@pytest.fixture
def run(finished: Path) -> Path:
    shutil.rmtree(finished / "heal", ignore_errors=True)
    return finished


def heal(monkeypatch: pytest.MonkeyPatch, run: Path, *words: str) -> str | int | None:
    monkeypatch.setattr(sys, "argv", ["evocompress", "heal", str(run), *words])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code


@pytest.mark.parametrize(
    "words",
    [
        ("heal.train=norms,head",),
        ("heal.train=lora", "heal.checkpointing=true"),
        ("heal.tokens=300", "heal.next_token=0.1", "heal.states=0.5"),
        ("heal.average=2",),
        ("heal.tokens=auto", "heal.train=norms"),
        ("heal.source=self",),
        ("heal.top_k=32", "heal.average=2", "heal.adapt_teacher=200"),
        ("heal.top_k=32", "heal.tokens=auto", "heal.adapt_teacher=200"),
    ],
    ids=" ".join,
)
def test_a_way_of_healing(
    monkeypatch: pytest.MonkeyPatch, run: Path, words: tuple[str, ...]
) -> None:
    assert heal(monkeypatch, run, *words) == 0
    report = json.loads((run / "heal" / "heal.json").read_text())
    assert report["best_kl"] <= report["initial_kl"] and report["tokens"] > 0
    assert (run / "heal" / "checkpoint" / "model.safetensors").exists()
    assert api.report(run).exists()


def test_several_sources_are_named_with_their_weights(
    monkeypatch: pytest.MonkeyPatch, run: Path
) -> None:
    text = run.parent.parent / "text.txt"
    assert heal(monkeypatch, run, f"heal.source={{{text}: 3, self: 1}}") == 0


def test_states_and_a_teacher_that_is_gone_are_refused_together(
    monkeypatch: pytest.MonkeyPatch, run: Path
) -> None:
    code = heal(monkeypatch, run, "heal.top_k=8", "heal.states=1")
    assert isinstance(code, str) and "\n" not in code
    assert "which top_k does without: leave one of them out" in code


def test_repeated_text_is_told(
    monkeypatch: pytest.MonkeyPatch, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert heal(monkeypatch, run, "heal.batch=64", "heal.accumulate=8") == 0
    assert "healing repeats its text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("heal.train=everything", "heal.train"),
        ("heal.train=biases", "LlamaForCausalLM has none: leave the word out"),
        ("heal.source=gone.txt", "heal.source: gone.txt does not exist"),
        ("heal.teacher=gone", "gone"),
        ("heal.tokens=many", "heal.tokens"),
        ("heal.top_k=0", "heal.top_k"),
    ],
)
def test_bad_input_is_one_line(
    monkeypatch: pytest.MonkeyPatch, run: Path, word: str, message: str
) -> None:
    code = heal(monkeypatch, run, word)
    assert isinstance(code, str) and message in code and "\n" not in code
    assert not (run / "heal").exists() or not list((run / "heal").iterdir())
