import json
from pathlib import Path

import numpy as np
import pytest
from fabricate import DROPPED, candidate, run_folder, units, write_lines

from evocompress.core.config import SparsitySpace
from evocompress.core.errors import RunError
from evocompress.pipeline.journal_memory import Memory
from evocompress.report.history import ComparedValue, History, read_history

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
    assert uniform_value == ComparedValue(pytest.approx(460 / 920), 3)


def value(name: str, micro_batch: int, mean: float, treatment: str = "none") -> dict[str, object]:
    found = {"micro_batch": micro_batch, "sums": [10 * mean], "counts": [10]}
    return {"type": "value", "candidate": name, "treatment": treatment, **found}


def step(number: int, incumbent: str, value: float) -> dict[str, object]:
    spent = {"requested": number, "computed": number}
    return {"type": "step", "step": number, **spent, "incumbent": incumbent, "value": value}


def test_steps_are_compared_on_what_they_share_with_the_last_one(tmp_path: Path) -> None:
    uniform, *others = (candidate(None), *(candidate(np.random.default_rng(i)) for i in range(3)))
    first, other, last = (each.id for each in others)
    lines = [
        {"type": "run"},
        *({"type": "candidate", "id": c.id, "levels": c.to_json()} for c in (uniform, *others)),
        # Micro-batch 1 is a hard text: by its own values the last one seems to be the worst.
        *(value(first, 0, 0.5), value(other, 2, 0.3), value(last, 0, 0.4), value(last, 1, 0.9)),
        *(value(uniform.id, 1, 1.1), value(uniform.id, 2, 0.1)),
        *(step(0, first, 0.5), step(1, other, 0.3), step(2, last, 0.65)),
    ]
    write_lines(tmp_path / "journal.jsonl", lines)
    history = read_history(Memory(tmp_path / "journal.jsonl"), units(), HALF)
    assert [s.value for s in history.steps] == [pytest.approx(0.75), None, pytest.approx(0.65)]
    assert history.apart == 1
    assert history.uniform == ComparedValue(pytest.approx(0.85), 1)
    treated = read_history(Memory(tmp_path / "journal.jsonl"), units(), HALF, "tuned")
    assert treated.uniform is None and treated.apart == 3


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
