"""The commands about the program and the computer: --version, spaces, doctor."""

from pathlib import Path

import pytest
import yaml
from test_cli import call

import evocompress
from evocompress.core.config_file import first_sentence, shipped_files
from evocompress.pipeline import doctor
from evocompress.pipeline.doctor.packages import Package

PYTHON = Package("Python", ">=3.11", "3.11.7")
TORCH = Package("torch", ">=2.13.0", "2.13.0")


def test_the_version_is_one_line(monkeypatch, capsys):
    assert call(monkeypatch, "--version") == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"evocompress {evocompress.__version__} (Python 3.")
    assert ", torch 2." in line and ", transformers 5." in line


def test_every_shipped_run_file_is_listed_with_what_it_is_for(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "spaces") == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    cells = [[cell.strip() for cell in row.strip("│").split("│")] for row in rows]
    assert {name for name, _ in cells} == set(shipped_files())
    assert dict(cells)["smollm2_latency70"] == (
        "SmolLM2-135M at 70% of its prefill latency on this machine"
    )
    assert all(len(purpose) > 20 for _, purpose in cells)


def test_a_shipped_run_file_is_printed_as_it_is(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    file = shipped_files()["smollm2_width_70"]
    for name in (file.stem, file.name):
        assert call(monkeypatch, "spaces", name) == 0
        shown = capsys.readouterr().out
        assert shown == file.read_text() and yaml.safe_load(shown)["space"]
    said = call(monkeypatch, "spaces", "smollm2_wide_70")
    assert said.startswith("error: no shipped run file is called 'smollm2_wide_70'")
    assert "did you mean 'smollm2_width_70'?" in said and "\n" not in said


@pytest.mark.parametrize(
    ("comment", "sentence"),
    [
        ("# One of 0.5 parts: which? Run it\n# with\na: 1", "One of 0.5 parts"),
        ("# A whole\n# sentence. Another\na: 1\n# late", "A whole sentence"),
        ("a: 1\n", ""),
    ],
)
def test_the_first_sentence_of_a_run_file(tmp_path, comment, sentence):
    file = tmp_path / "run.yaml"
    file.write_text(comment)
    assert first_sentence(file) == sentence


def told(monkeypatch, capsys, found, *words):
    """The exit status and the text of the doctor, who found this."""
    asked = []
    monkeypatch.setattr(
        doctor, "examine", lambda reporter, **options: asked.append(options) or found
    )
    status = call(monkeypatch, "doctor", *words)
    return status, capsys.readouterr().out, asked


def test_the_doctor_ends_with_an_error_where_something_required_is_missing(monkeypatch, capsys):
    missing = Package("numba", ">=0.68.1", None)
    old = Package("pymoo", ">=0.6.2", "0.6.1")
    found = doctor.Examination(PYTHON, (TORCH, missing, old))
    status, shown, asked = told(monkeypatch, capsys, found)
    assert status == 1 and asked == [{"speed": True}]
    lines = shown.partition("Required, and missing or broken:\n")[2].splitlines()
    assert lines == [
        "- numba is not installed: pip install 'numba>=0.68.1'",
        "- pymoo 0.6.1 is installed, >=0.6.2 is wanted: pip install 'pymoo>=0.6.2'",
    ]


def test_the_doctor_is_content_where_all_that_is_required_works(monkeypatch, capsys):
    found = doctor.Examination(PYTHON, (TORCH,))
    status, shown, asked = told(monkeypatch, capsys, found, "--no-speed")
    assert status == 0 and asked == [{"speed": False}]
    assert shown.rstrip().endswith("Everything that is required works.")
    assert "missing" not in shown


def test_help_of_the_commands_has_examples(monkeypatch, capsys):
    for command in ("spaces", "doctor"):
        assert call(monkeypatch, command, "--help") == 0
        assert "Example" in capsys.readouterr().out
    assert call(monkeypatch, "--help") == 0
    shown = capsys.readouterr().out
    assert "spaces" in shown and "doctor" in shown and "--version" in shown


def test_the_list_is_that_of_the_folder():
    folder = Path(evocompress.__file__).parents[1] / "search_spaces"
    assert list(shipped_files()) == sorted(path.stem for path in folder.glob("*.yaml"))
