import json
from pathlib import Path

import pytest
from fabricate import DROPPED, candidate, run_folder, units, write_lines

from evocompress.config import SparsitySpace
from evocompress.errors import RunError
from evocompress.journal_memory import Memory
from evocompress.report.history import History, UniformValue, read_history

HALF = SparsitySpace(target=0.5)


def test_journal_of_a_finished_run(finished: Path) -> None:
    history = read_history(Memory(finished / "journal.jsonl"), units(), HALF)
    assert len(history.steps) == 120
    assert history.steps[-1].requested == 660_000
    assert history.candidates == 2
    assert history.failures == ("NaN",)


def test_uniform_is_the_mean_over_its_positions(tmp_path: Path) -> None:
    uniform = candidate(None)
    own = {"type": "value", "candidate": uniform.id, "treatment": "none"}
    lines = [
        {"type": "run"},
        {"type": "candidate", "id": uniform.id, "levels": uniform.to_json()},
        {**own, "micro_batch": 0, "sums": [100.0, 300.0], "counts": [400, 400]},
        {**own, "micro_batch": 1, "sums": [60.0], "counts": [120]},
        {**own, "treatment": "abc", "micro_batch": 0, "sums": [1.0], "counts": [1]},
    ]
    write_lines(tmp_path / "journal.jsonl", lines)
    uniform_value = read_history(Memory(tmp_path / "journal.jsonl"), units(), HALF).uniform
    assert uniform_value == UniformValue(pytest.approx(460 / 920), 3)


@pytest.mark.parametrize(
    ("target", "dropped"), [(0.6, ()), (0.5, DROPPED)], ids=["another target", "with drops"]
)
def test_other_candidates_are_not_uniform(
    tmp_path: Path, target: float, dropped: tuple[str, ...]
) -> None:
    other = candidate(None, dropped)
    value = {"micro_batch": 0, "sums": [1.0], "counts": [1]}
    lines = [
        {"type": "run"},
        {"type": "candidate", "id": other.id, "levels": other.to_json()},
        {"type": "value", "candidate": other.id, "treatment": "none", **value},
    ]
    write_lines(tmp_path / "journal.jsonl", lines)
    sparsity = SparsitySpace(target=target)
    assert read_history(Memory(tmp_path / "journal.jsonl"), units(), sparsity).uniform is None
    assert read_history(Memory(tmp_path / "journal.jsonl"), units(), None).uniform is None


def test_a_line_being_written_is_ignored_and_left_in_place(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    text = json.dumps({"type": "run"}) + '\n{"type":"candidate","id":"a'
    journal.write_text(text)
    assert read_history(Memory(journal), units(), HALF) == History()
    assert journal.read_text() == text


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    lines = (folder / "journal.jsonl").read_text().splitlines()
    lines[4] = lines[4][:10]
    (folder / "journal.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(RunError, match=r"journal\.jsonl, line 5"):
        read_history(Memory(folder / "journal.jsonl"), units(), HALF)
