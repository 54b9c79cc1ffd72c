"""Questions are read from lines of JSON, and a line that is no question is named."""

import json
import os

import pytest

from evocompress.core.errors import ConfigError, DataError
from evocompress.evaluation.tasks import read_task

GOOD = {"question": "2 + 2 =", "choices": ["3", "4"], "label": 1}


def written(folder, *rows):
    path = folder / "sums.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_questions_are_asked_as_they_stand(tmp_path):
    task = read_task("sums", written(tmp_path, GOOD | {"id": 7}, "", GOOD))
    assert task.rows() == [GOOD, GOOD] and not task.blanks


def test_a_file_of_sentences_with_a_blank_is_scored_by_what_follows(tmp_path):
    rows = [GOOD | {"question": f"There _ , and {name}"} for name in ("so on.", "that's all.")]
    task = read_task("sums", written(tmp_path, *rows))
    assert task.blanks
    assert task.rows()[0] == {
        "question": 1,
        "choices": ["There 3", "There 4"],
        "label": ", and so on.",
    }


@pytest.mark.parametrize(
    "question", ["no blank", "snake_case", "two _ and _ here", "at the end _", "a long ____ one"]
)
def test_one_other_question_makes_it_an_ordinary_task(tmp_path, question):
    rows = [GOOD | {"question": text} for text in ("a _ here", question)]
    assert not read_task("sums", written(tmp_path, *rows)).blanks


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("{", "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is not JSON"),
        ("1", "line 2: .*dictionary"),
        ({"question": "?", "choices": ["a", "b"]}, "line 2: key 'label' is missing"),
        (GOOD | {"label": 2}, "line 2: label 2 is of none of the 2 choices"),
        (GOOD | {"label": -1}, "line 2: key 'label'"),
        (GOOD | {"label": "1"}, "line 2: key 'label'"),
        (GOOD | {"label": True}, "line 2: key 'label'"),
        (GOOD | {"choices": ["4"]}, "line 2: key 'choices'"),
        (GOOD | {"choices": ["4", " "]}, "line 2: key 'choices.1': a text must not be empty"),
        (GOOD | {"question": "\ud800"}, "line 2: key 'question': half a letter"),
    ],
)
def test_a_line_that_is_no_question_is_named(tmp_path, row, told):
    path = written(tmp_path, GOOD, row)
    with pytest.raises((ConfigError, DataError), match=told) as caught:
        read_task("sums", path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_file_without_questions_or_that_is_no_text_is_named(tmp_path):
    with pytest.raises(DataError, match="holds no questions"):
        read_task("sums", written(tmp_path, "\n\n"))
    (tmp_path / "sums.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        read_task("sums", tmp_path / "sums.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(DataError, match="pipe"):
        read_task("pipe", tmp_path / "pipe.jsonl")
