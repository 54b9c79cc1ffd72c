import errno
import json

import pytest

from evocompress.core.errors import RunError
from evocompress.core.requests import Estimate, Estimation, Evaluate, MicroBatchValue, Result
from evocompress.core.types import Candidate, Level
from evocompress.pipeline.journal import Journal, Step, last_step, read_candidates

HEADER = {"fingerprint": "abc", "seed": 0}
A = Candidate((("a", Level(zeros=3)),))
B = Candidate((("b", Level(drop=True)),))


def answer(request: Evaluate) -> Result:
    values = tuple(MicroBatchValue(m, (float(m), 0.1), (5, 6)) for m in request.micro_batches)
    return Result(request, values)


def test_values_are_found_again_by_micro_batch(tmp_path):
    with Journal(tmp_path / "j", HEADER) as journal:
        journal.record(answer(Evaluate(A, (0, 2))))
        assert journal.missing([Evaluate(A, (2, 1))]) == [Evaluate(A, (1,))]
        assert journal.result(Evaluate(A, (2, 0))) == answer(Evaluate(A, (2, 0)))
        assert journal.result(Evaluate(B, (0,))) is None
        assert journal.result(Evaluate(A, (0,), treatment="tuned")) is None


def test_the_same_question_twice_is_asked_once(tmp_path):
    with Journal(tmp_path / "j", HEADER) as journal:
        missing = journal.missing([Evaluate(A, (0, 1)), Evaluate(A, (1, 2)), Evaluate(A, (0,))])
    assert missing == [Evaluate(A, (0, 1)), Evaluate(A, (2,))]


def test_reopening_gives_the_same_memory_and_appends_nothing(tmp_path):
    path = tmp_path / "j"
    with Journal(path, HEADER) as journal:
        journal.record(answer(Evaluate(A, (0, 1))))
        journal.record(Result(Evaluate(B, (0,)), (), failed="NaN"))
        journal.step(Step(0, 22, 22, A.id, 0.5))
    before = path.read_bytes()
    with Journal(path, HEADER) as journal:
        assert journal.result(Evaluate(A, (0, 1))) == answer(Evaluate(A, (0, 1)))
        failed = journal.result(Evaluate(B, (0, 1)))
        assert failed is not None and failed.failed == "NaN"
        assert journal.steps == (Step(0, 22, 22, A.id, 0.5),)
        journal.step(Step(0, 22, 22, A.id, 0.5))
    assert path.read_bytes() == before


def test_a_torn_last_line_is_dropped_at_every_byte(tmp_path):
    path = tmp_path / "j"
    with Journal(path, HEADER) as journal:
        journal.record(answer(Evaluate(A, (0,))))
    start = len(path.read_bytes())
    with Journal(path, HEADER) as journal:
        journal.record(answer(Evaluate(A, (1,))))
    whole = path.read_bytes()
    for cut in range(start, len(whole)):
        path.write_bytes(whole[:cut])
        with Journal(path, HEADER) as journal:
            assert journal.result(Evaluate(A, (0,))) is not None
            assert journal.missing([Evaluate(A, (1,))]) == [Evaluate(A, (1,))]
            journal.record(answer(Evaluate(A, (1,))))
        assert path.read_bytes() == whole


def test_a_censored_result_answers_only_the_same_question(tmp_path):
    request = Evaluate(A, (0, 1, 2), stop_above=0.1)
    stopped = Result(request, answer(Evaluate(A, (0,))).values, censored=True)
    with Journal(tmp_path / "j", HEADER) as journal:
        journal.record(stopped)
    with Journal(tmp_path / "j", HEADER) as journal:
        assert journal.result(request) == stopped
        assert journal.result(request).mean == float("inf")
        assert journal.missing([Evaluate(A, (0, 1, 2), stop_above=0.2)]) == [
            Evaluate(A, (0, 1, 2), stop_above=0.2)
        ]
        assert journal.missing([Evaluate(A, (0, 1))]) == [Evaluate(A, (1,))]


def test_another_header_is_refused_naming_the_difference(tmp_path):
    Journal(tmp_path / "j", HEADER).close()
    with pytest.raises(RunError, match="seed was 0, is 1"):
        Journal(tmp_path / "j", {**HEADER, "seed": 1})


def test_a_replayed_step_must_be_the_recorded_one(tmp_path):
    with Journal(tmp_path / "j", HEADER) as journal:
        journal.step(Step(0, 10, 10, A.id, 0.5))
    with Journal(tmp_path / "j", HEADER) as journal, pytest.raises(RunError, match="step 0"):
        journal.step(Step(0, 10, 10, A.id, 0.25))


def test_damage_in_the_middle_is_an_error(tmp_path):
    path = tmp_path / "j"
    with Journal(path, HEADER) as journal:
        journal.record(answer(Evaluate(A, (0,))))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:5], *lines[2:]]) + "\n")
    with pytest.raises(RunError, match="line 2"):
        Journal(path, HEADER)


def test_every_line_is_json_with_a_type(tmp_path):
    with Journal(tmp_path / "j", HEADER) as journal:
        journal.record(answer(Evaluate(A, (0,))))
    kinds = [json.loads(line)["type"] for line in (tmp_path / "j").read_text().splitlines()]
    assert kinds == ["run", "candidate", "value"]


class FullDisk:
    """A file on a disk with room for ten more bytes."""

    def __init__(self, file):
        self._file = file
        self._room = 10

    def write(self, data):
        if not self._room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self._file.write(data[: self._room])
        self._room -= written
        return written

    def fileno(self):
        return self._file.fileno()

    def close(self):
        self._file.close()


def test_a_full_disk_is_one_clear_error_and_the_journal_goes_on(tmp_path):
    path = tmp_path / "j"
    with pytest.raises(RunError, match="disk full"), Journal(path, HEADER) as journal:
        journal._file = FullDisk(journal._file)
        journal.record(answer(Evaluate(A, (0,))))
    with Journal(path, HEADER) as journal:
        assert journal.missing([Evaluate(A, (0,))]) == [Evaluate(A, (0,))]
        journal.record(answer(Evaluate(A, (0,))))
        assert journal.result(Evaluate(A, (0,))) is not None


ASKED = Estimate(A, "influence", (2, 0))
ESTIMATION = Estimation(ASKED, ("a", "b", "c"), ((0.1, 1e-300), (), (2 / 3,)))


def test_an_estimate_is_found_again_to_the_last_bit(tmp_path):
    path = tmp_path / "j"
    with Journal(path, HEADER) as journal:
        assert journal.missing([ASKED, ASKED]) == [ASKED]
        journal.record(ESTIMATION)
        assert journal.missing([ASKED]) == []
    before = path.read_bytes()
    with Journal(path, HEADER) as journal:
        assert journal.answer(ASKED) == ESTIMATION
        assert journal.candidates == {A.id: A}
        for other in (
            Estimate(A, "influence", (0, 2)),
            Estimate(A, "distance", (2, 0)),
            Estimate(B, "influence", (2, 0)),
        ):
            assert journal.missing([other]) == [other]
    assert path.read_bytes() == before


def test_an_estimate_without_units_is_kept(tmp_path):
    empty = Estimation(ASKED, (), ())
    with Journal(tmp_path / "j", HEADER) as journal:
        journal.record(empty)
    with Journal(tmp_path / "j", HEADER) as journal:
        assert journal.answer(ASKED) == empty


def test_a_kill_between_file_and_line_is_harmless(tmp_path):
    path = tmp_path / "j"
    with Journal(path, HEADER) as journal:
        journal.record(answer(Evaluate(A, (0,))))
        without = path.read_bytes()
        journal.record(ESTIMATION)
    whole = path.read_bytes()
    for kept in (without, without + whole[len(without) :][:-5]):
        path.write_bytes(kept)
        with Journal(path, HEADER) as journal:
            assert journal.missing([ASKED]) == [ASKED]
            journal.record(ESTIMATION)
        assert path.read_bytes() == whole


def test_an_estimate_that_failed_is_not_made_again(tmp_path):
    failed = Estimation(ASKED, (), (), failed="out of memory")
    with Journal(tmp_path / "j", HEADER) as journal:
        journal.record(failed)
    with Journal(tmp_path / "j", HEADER) as journal:
        assert journal.answer(ASKED) == failed
        assert journal.missing([ASKED]) == []


def test_a_damaged_file_of_an_estimate_names_itself(tmp_path):
    with Journal(tmp_path / "j", HEADER) as journal:
        journal.record(ESTIMATION)
    [file] = (tmp_path / "estimates").iterdir()
    content = bytearray(file.read_bytes())
    for place in (0, len(content) // 2, len(content) - 1):
        broken = bytearray(content)
        broken[place] ^= 1
        file.write_bytes(broken)
        with Journal(tmp_path / "j", HEADER) as journal, pytest.raises(RunError, match=file.name):
            journal.missing([ASKED])


def test_a_lost_estimate_must_come_out_the_same(tmp_path):
    path = tmp_path / "j"
    with Journal(path, HEADER) as journal:
        journal.record(ESTIMATION)
    before = path.read_bytes()
    [file] = (tmp_path / "estimates").iterdir()
    file.unlink()
    with Journal(path, HEADER) as journal:
        assert journal.missing([ASKED]) == [ASKED]
        with pytest.raises(RunError, match="another"):
            journal.record(Estimation(ASKED, ("a",), ((0.5,),)))
        journal.record(ESTIMATION)
        assert journal.answer(ASKED) == ESTIMATION
    assert path.read_bytes() == before


def test_candidates_are_read_without_touching_the_file(tmp_path):
    path = tmp_path / "j"
    with Journal(path, HEADER) as journal:
        journal.record(answer(Evaluate(A, (0,))))
        journal.record(answer(Evaluate(B, (0,))))
    torn = path.read_bytes() + b'{"type":"cand'
    path.write_bytes(torn)
    assert read_candidates(path) == {A.id: A, B.id: B}
    assert path.read_bytes() == torn


def test_the_last_step_is_found_from_the_end(tmp_path):
    path = tmp_path / "journal.jsonl"
    with Journal(path, {}) as journal:
        assert last_step(path, tail=64) is None
        steps = [Step(n, 10 * n, 9 * n, "i", 0.5, "first") for n in range(3)]
        for step in steps:
            journal.step(step)
            assert last_step(path, tail=64) == step
        for n in range(20):
            journal.record(answer(Evaluate(A, (n,))))
            assert last_step(path, tail=64) == steps[-1]
    with path.open("ab") as file:
        file.write(b'{"type":"step","step":9,"requ')
    assert last_step(path, tail=64) == steps[-1]
