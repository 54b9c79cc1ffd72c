"""Names from elsewhere: what brackets, escape codes and Markdown in them must not do."""

import logging
import sys
from io import StringIO

import pytest
import yaml
from rich.console import Console
from run_files import TEXT

from evocompress.cli import commands
from evocompress.core.errors import RunError, one_line
from evocompress.core.foreign_text import as_code, in_markdown, printable, shortened
from evocompress.core.progress import LOG, Reporter
from evocompress.core.types import Candidate
from evocompress.export.card import model_card
from evocompress.export.checkpoint import _loading
from evocompress.export.formats import Format
from evocompress.export.record import Record
from evocompress.testing.tiny import tiny_checkpoint, tiny_loaded

NAMES = ("a[/x]b", "[red]model[/red]", "[link=http://x]y", "a[b", "[/]", "\\[bold]")
ESCAPE = "a\x1b[31m\x07\x9b2J\x00\u202eb"
PAGE = "x\n# Heading\n<script>alert(1)</script>\n---\nlicense: none\n``` `` ` [a](b) | c"


def test_control_characters_are_written_out_and_other_signs_kept():
    assert printable(ESCAPE) == "a\\x1b[31m\\x07\\x9b2J\\x00\\u202eb"
    assert printable("größe 模型 é\u200d\t\n") == "größe 模型 é\u200d\t\n"
    assert printable("a\nb", "") == "a\\nb"
    assert shortened("x" * 10**6).count("x") < 1100 and shortened("short") == "short"
    assert one_line(RunError(ESCAPE + "y" * 10**6)).isprintable()
    assert len(one_line(RunError("y" * 10**6))) < 1100


@pytest.mark.parametrize("name", [*NAMES, ESCAPE])
@pytest.mark.parametrize("terminal", [True, False])
def test_a_stage_can_have_any_name(name, terminal):
    out = StringIO()
    reporter = Reporter(Console(file=out, force_terminal=terminal, width=200, color_system=None))
    with reporter.stage(f"load {name}") as advance:
        advance(1, 2, f"block {name}")
        if terminal:
            reporter.console.print(reporter._bar())
    reporter.say(name)
    assert printable(name) in out.getvalue() and "\x1b[31m" not in out.getvalue()
    assert "\x00" not in out.getvalue() and "\u202e" not in out.getvalue()


def test_the_log_and_warnings_hold_no_escape_codes(tmp_path, capsys):
    reporter = Reporter(Console(quiet=True))
    reporter.log_to(tmp_path / "log.txt")
    try:
        reporter.say(ESCAPE)
        LOG.warning("%s", ESCAPE)
    finally:
        LOG.handlers = [logging.NullHandler()]
    assert "\x1b" not in (tmp_path / "log.txt").read_text() + capsys.readouterr().err
    assert (tmp_path / "log.txt").read_text().count("\\x1b[31m") == 2


def call(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["evocompress", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        commands.main()
    return stop.value.code


@pytest.mark.parametrize("name", ["a[/x]b", "b\x1b[31m"])
def test_every_stage_works_in_a_folder_of_any_name(monkeypatch, capsys, tmp_path, name):
    # A live bar is drawn on a terminal only.
    monkeypatch.setattr(Console, "is_terminal", property(lambda self: True))
    home = tmp_path / name
    model = tiny_checkpoint(home / "[bold]model")
    (home / "text.txt").write_text(TEXT)
    run = {
        "model": {"source": "[bold]model"},
        "threads": 1,
        "calibration": {
            "source": "text.txt",
            "library_sequences": 4,
            "search_sequences": 4,
            "heldout_sequences": 2,
            "length": 16,
        },
        "space": {"sparsity": {"target": 0.5, "step": 128, "levels": 1}},
        "search": {"name": "uniform"},
        "heal": {"steps": 1, "evaluate_every": 1, "validation_sequences": 1},
        "evaluate": {"latency": False},
    }
    (home / "trial.yaml").write_text(yaml.safe_dump(run))
    monkeypatch.chdir(home)
    assert model.exists() and call(monkeypatch, "search", home / "trial.yaml") == 0
    for command in ("materialize", "heal", "evaluate", "report"):
        assert call(monkeypatch, command, home / "runs" / "trial") == 0, command
    assert call(monkeypatch, "library", "inspect", home / "runs" / "trial" / "library") == 0
    assert call(monkeypatch, "plan", "[bold]model", "--space", "trial.yaml") == 0
    printed = capsys.readouterr()
    assert "\x1b[31m" not in printed.out + printed.err
    assert str(call(monkeypatch, "report", home / "nowhere")).isprintable()
    card = (home / "runs" / "trial" / "checkpoint" / "README.md").read_text()
    assert "`[bold]model`" in card


def record(source):
    return Record(
        id="0",
        levels={},
        format="hf",
        source=source,
        model_fingerprint="f",
        library_fingerprint=None,
        predicted={},
        measured={},
    )


@pytest.mark.parametrize("source", [PAGE, "a/b\nlicense: none", ESCAPE, "-a/b", "a/b c"])
def test_a_source_is_nothing_but_text_in_the_model_card(source):
    text = model_card(record(source), Candidate(), (), "load()")
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {"library_name": "transformers", "tags": ["evocompress"]}
    headings = [line for line in body.splitlines() if line.startswith("#")]
    assert headings == ["# Compressed model", "## What was done", "## Loading"]
    assert printable(text) == text
    assert f"from {as_code(source)} (" in body


def test_a_hub_id_stays_the_base_of_a_model():
    text = model_card(record("some-one/A.model_1"), Candidate(), (), "load()")
    assert yaml.safe_load(text.split("---\n")[1])["base_model"] == "some-one/A.model_1"


def test_code_in_a_model_card_cannot_be_left():
    assert as_code("a`b") == "``a`b``" and as_code("`") == "`` ` ``"
    text = model_card(record("x"), Candidate(), (), "load('```')\n# ``` more")
    assert "\n````python\nload('```')\n# ``` more\n````\n" in text


class _Loads(Format):
    loading = 'model = {auto}.from_pretrained("{path}")'


@pytest.mark.parametrize("folder", ['x");import os;os.system("y', "a\\", "b\nc", ESCAPE])
def test_the_name_of_a_folder_stays_in_its_string(folder):
    found = []

    class Auto:
        @staticmethod
        def from_pretrained(path):
            found.append(path)

    code = _loading(tiny_loaded("llama"), _Loads, folder)
    exec(compile(code, "card", "exec"), {"AutoModelForCausalLM": Auto, "AutoTokenizer": Auto})
    assert set(found) == {folder} and printable(code) == code


def test_markdown_has_no_headings_html_or_emphasis_of_a_name():
    text = in_markdown(PAGE)
    assert "\n" not in text and "<" not in text and "\\# Heading" in text and "\\`" in text
    assert "\\[a\\](b) \\| c" in text


def test_the_messages_of_wrong_words_on_the_command_line(monkeypatch, capsys):
    for words in (("search", "[/x]"), ("sear[/ch]",), ("report", "--[/x]"), ("plan", "[/a]")):
        assert call(monkeypatch, *words) != 0
    assert "\x1b[31m" not in capsys.readouterr().err


def test_long_lists_of_other_libraries_are_cut():
    names = [f"'model-{number}'" for number in range(300)]
    said = one_line(KeyError(f"one of {', '.join(names)}; got 'x'"))
    assert "'model-0', 'model-1'" in said and "... (300 in all)" in said and len(said) < 150
    few = "one of 'a', 'b', 'c' and 'd', but not of 'e', 'f'"
    assert few in one_line(ValueError(few)) and ", ".join(names) not in said
