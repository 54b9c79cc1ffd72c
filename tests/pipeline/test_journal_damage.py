"""Damaged, foreign and shared journals: one line that names the place, and nothing lost."""

import json
import os
import tracemalloc

import pytest

from evocompress.core.errors import RunError
from evocompress.core.requests import Estimate, Evaluate, MicroBatchValue, Result
from evocompress.core.types import Candidate, Level
from evocompress.pipeline import journal as journals
from evocompress.pipeline.journal import Journal, Step, last_step, read_candidates
from evocompress.pipeline.journal_memory import Memory

HEADER = {"model": "abc", "seed": 0}
A = Candidate((("a", Level(zeros=3)),))
B = Candidate((("b", Level(drop=True)),))


def write(path):
    """A journal with a line of every kind but those of estimates."""
    with Journal(path, HEADER) as journal:
        request = Evaluate(A, (0, 1))
        values = tuple(MicroBatchValue(m, (m + 0.5, 0.1), (5, 6)) for m in request.micro_batches)
        journal.record(Result(request, values))
        journal.record(Result(Evaluate(B, (0,)), (), failed="NaN"))
        raced = Evaluate(A, (0, 2), stop_above=0.25)
        journal.record(Result(raced, values[:1], censored=True))
        journal.step(Step(0, 22, 20, A.id, 0.5, "first"))
        journal.step(Step(1, 44, 20, None, None))
    return path.read_bytes()


def without_checksums(content):
    """The journal as earlier versions wrote it."""
    records = [json.loads(line) for line in content.splitlines()]
    for record in records:
        del record["xxh3"]
    lines = [json.dumps(record, separators=(",", ":")) for record in records]
    return "".join(line + "\n" for line in lines).encode()


def test_a_flipped_bit_anywhere_is_found_and_its_line_named(tmp_path):
    path = tmp_path / "j"
    content = write(path)
    for place in range(len(content)):
        line = content[:place].count(b"\n") + 1
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        for read in (Memory, lambda file: Journal(file, HEADER))[: 1 + (place % 5 == 0)]:
            with pytest.raises(RunError, match=rf"line {line}\b"):
                list(read(path).candidates.items())
        assert path.read_bytes() == damaged


def test_a_flipped_bit_in_the_last_step_is_found_from_the_end(tmp_path):
    path = tmp_path / "j"
    content = bytearray(write(path))
    content[-60] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match="line 9"):
        last_step(path, tail=64)


def test_a_journal_without_checksums_is_read_and_is_given_them_when_it_goes_on(tmp_path):
    path = tmp_path / "j"
    content = write(path)
    old = without_checksums(content)
    path.write_bytes(old + b'{"type":"value","cand')
    memory = Memory(path)
    assert (len(memory.steps), memory.failures) == (2, {(B.id, "none"): "NaN"})
    assert read_candidates(path) == {A.id: A, B.id: B}
    assert last_step(path) == Step(1, 44, 20, None, None)
    assert path.read_bytes().startswith(old)
    with Journal(path, HEADER) as journal:
        assert journal.result(Evaluate(A, (1,))) is not None
        assert journal.missing([Evaluate(A, (2, 1))]) == [Evaluate(A, (2,))]
        assert journal.candidates == {A.id: A, B.id: B}
    assert path.read_bytes() == content


OWNER = {"candidate": A.id, "treatment": "none"}
VALUE = {"type": "value", **OWNER, "micro_batch": 5, "sums": [1.0], "counts": [1]}
STEP = {"type": "step", "step": 2, "requested": 1, "computed": 1, "incumbent": None, "value": None}
WRONG = {
    "null": b"null",
    "a list": b"[]",
    "an empty object": b"{}",
    "an unknown type": b'{"type":"valve"}',
    "a text where numbers are due": json.dumps(VALUE | {"sums": "1.0"}).encode(),
    "a negative micro-batch": json.dumps(VALUE | {"micro_batch": -1}).encode(),
    "more sums than counts": json.dumps(VALUE | {"sums": [1.0, 2.0]}).encode(),
    "no positions": json.dumps(VALUE | {"counts": [0]}).encode(),
    "an unknown key": json.dumps(VALUE | {"sum": 1}).encode(),
    "a value twice": json.dumps(VALUE | {"micro_batch": 1}).encode(),
    "a step twice": json.dumps(STEP | {"step": 1}).encode(),
    "a step too far": json.dumps(STEP | {"step": 9}).encode(),
    "a second header": b'{"type":"run"}',
    "a candidate twice": json.dumps(
        {"type": "candidate", "id": A.id, "levels": A.to_json()}
    ).encode(),
    "a candidate of another id": json.dumps(
        {"type": "candidate", "id": "0" * 16, "levels": {"c": {"zeros": 3}}}
    ).encode(),
    "a level that there is not": json.dumps(
        {"type": "candidate", "id": "0" * 16, "levels": {"c": {"noughts": 3}}}
    ).encode(),
    "not UTF-8": b'{"type":"failure","candidate":"\xff\xfe","treatment":"none","reason":""}',
    "deep nesting": b'{"type":"run","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "many digits": b'{"type":"value","micro_batch":' + b"9" * 5_000 + b"}",
    "a number beyond 64 bits": json.dumps(STEP | {"requested": 2**70}).encode(),
    "NUL bytes": b"\0" * 40,
    "nothing": b"",
}


@pytest.mark.parametrize("line", WRONG.values(), ids=WRONG)
def test_a_line_of_another_shape_is_one_clear_error(tmp_path, line):
    path = tmp_path / "j"
    content = without_checksums(write(path)) + line + b"\n"
    path.write_bytes(content)
    for read in (Memory, lambda file: Journal(file, HEADER)):
        with pytest.raises(RunError, match="line 10") as caught:
            list(read(path).candidates.items())
        assert len(str(caught.value).splitlines()) == 1
        assert len(str(caught.value)) < 500
    assert path.read_bytes() == content


def test_what_is_no_journal_is_left_as_it_is(tmp_path):
    for text in (b"notes", b"notes\nmore\n", b'{"type":"run","seed":7'):
        (tmp_path / "j").write_bytes(text)
        with pytest.raises(RunError):
            Journal(tmp_path / "j", HEADER)
        assert (tmp_path / "j").read_bytes() == text


def test_a_torn_header_is_begun_again(tmp_path):
    content = write(tmp_path / "j")
    header = content[: content.index(b"\n") + 1]
    for cut in range(len(header)):
        (tmp_path / "j").write_bytes(header[:cut])
        Journal(tmp_path / "j", HEADER).close()
        assert (tmp_path / "j").read_bytes() == header


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_file_of_two_names_is_not_written_into(tmp_path, link):
    content = write(tmp_path / "other") + b'{"type":"cand'
    (tmp_path / "other").write_bytes(content)
    link(tmp_path / "other", tmp_path / "j")
    with pytest.raises(RunError, match="put a copy in its place"):
        Journal(tmp_path / "j", HEADER)
    assert (tmp_path / "other").read_bytes() == content
    assert set(Memory(tmp_path / "j").candidates) == {A.id, B.id}


def test_what_is_no_file_is_refused(tmp_path):
    (tmp_path / "j").mkdir()
    with pytest.raises(RunError, match="no regular file"):
        Journal(tmp_path / "j", HEADER)


def test_lines_reach_the_disk_at_the_end_and_now_and_then(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(journals.os, "fsync", lambda handle: synced.append(handle))
    monkeypatch.setattr(journals, "SYNC_SECONDS", 3600)
    with Journal(tmp_path / "j", HEADER) as journal:
        journal.step(Step(0, 1, 1, None, None))
        assert synced == []
        monkeypatch.setattr(journals, "SYNC_SECONDS", -1)
        journal.step(Step(1, 1, 1, None, None))
        assert len(synced) == 1
    assert len(synced) == 2


def test_what_is_missing_is_found_without_comparing_requests_with_each_other(tmp_path, monkeypatch):
    compared = []
    equal = Evaluate.__eq__
    monkeypatch.setattr(Evaluate, "__eq__", lambda *two: compared.append(two) or equal(*two))
    one_each = [Evaluate(Candidate((("a", Level(zeros=n)),)), (0, 1)) for n in range(1, 200)]
    raced = [Evaluate(one.candidate, (0, 1), stop_above=0.5) for one in one_each]
    estimates = [Estimate(one.candidate, "influence", (0,)) for one in one_each]
    requests = [*one_each, *raced, *estimates]
    with Journal(tmp_path / "j", HEADER) as journal:
        assert len(journal.missing([*requests, *requests])) == len(requests)
    assert len(compared) <= len(requests)


def test_a_race_that_stops_early_does_not_answer_for_what_is_asked_plainly(tmp_path):
    plain, raced = Evaluate(A, (0, 1)), Evaluate(A, (0, 1), stop_above=0.5)
    with Journal(tmp_path / "j", HEADER) as journal:
        assert journal.missing([raced, plain]) == [raced, plain]


def test_an_open_journal_takes_little_more_memory_than_its_numbers(tmp_path):
    with Journal(tmp_path / "j", HEADER) as journal:
        for zeros in range(1, 500):
            levels = tuple((f"model.layers.{n:02}.mlp", Level(zeros=zeros)) for n in range(30))
            values = tuple(MicroBatchValue(m, (0.1 * m,) * 4, (511,) * 4) for m in range(10))
            request = Evaluate(Candidate(levels), tuple(range(10)))
            journal.record(Result(request, values))
    size = (tmp_path / "j").stat().st_size
    Memory(tmp_path / "j")  # What is made once is not counted.
    tracemalloc.start()
    with Journal(tmp_path / "j", HEADER) as journal:
        assert len(journal.candidates) == 499
        assert tracemalloc.get_traced_memory()[1] < 1.2 * size
    tracemalloc.stop()
