"""Calibration from files with fields, data sets of conversations, and packed files."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from evocompress.core.config import CalibrationConfig
from evocompress.core.errors import DataError
from evocompress.evaluation.calibration.calibration import load_calibration
from evocompress.evaluation.calibration.documents import FORMATS
from evocompress.models.loading import LoadedModel
from evocompress.testing.tiny import tiny_loaded, tiny_tokenizer

TEXTS = [f'Document {number}, "quoted",\nin two lines, and with ü.' for number in range(40)]
TEMPLATE = (
    "{% for m in messages %}{% if m.role not in ('user', 'assistant') %}"
    "{{ raise_exception('Unknown role ' + m.role) }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}\n{% endfor %}"
)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_loaded()


@pytest.fixture
def chats(loaded: LoadedModel) -> LoadedModel:
    """A model whose tokenizer has a chat template."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return replace(loaded, tokenizer=tokenizer)


def write(path: Path, rows: Sequence[dict[str, Any]], kind: str = "") -> Path:
    """Writes rows in the format that a file's name, or `kind`, says."""
    kind = kind or path.suffix
    if kind == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    elif kind == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif kind == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config(source: Path | str, **changes: object) -> CalibrationConfig:
    sizes = {"library_sequences": 3, "search_sequences": 5, "heldout_sequences": 2, "length": 32}
    return CalibrationConfig.model_validate({"source": str(source), **sizes, **changes})


def read(source: Path | str, loaded: LoadedModel, **changes: object) -> str:
    """What the sequences of a source say, one after the other."""
    found = load_calibration(config(source, **changes), loaded)
    assert loaded.tokenizer is not None
    ids = torch.cat([found.library, *found.search, found.heldout]).flatten()
    text = loaded.tokenizer.decode(ids)
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("packed", [False, True])
def test_the_field_of_each_row_is_read(
    loaded: LoadedModel, tmp_path: Path, kind: str, packed: bool
) -> None:
    rows = [{"id": number, "text": text} for number, text in enumerate(TEXTS)]
    path = write(tmp_path / f"rows{kind}", rows)
    if packed and kind != ".parquet":
        path = tmp_path / f"rows{kind.upper()}.gz"
        path.write_bytes(gzip.compress((tmp_path / f"rows{kind}").read_bytes()))
    expected = "\n\n".join(TEXTS)[:310]
    assert read(path, loaded).startswith(expected)
    named = write(path.with_name(f"named{kind}"), [{"text": "no", "body": t} for t in TEXTS])
    assert read(named, loaded, field="body").startswith(expected)
    other = write(path.with_name(f"other{kind}"), [{"text": t[::-1]} for t in TEXTS])
    held = load_calibration(config(path, heldout_source=str(other)), loaded).heldout
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.decode(held[0])[:20] == TEXTS[0][::-1][:20]


def test_json_may_be_an_object_to_a_line_or_one_alone(loaded: LoadedModel, tmp_path: Path) -> None:
    lines = write(tmp_path / "lines.json", [{"text": t} for t in TEXTS], ".jsonl")
    whole = tmp_path / "one.json"
    whole.write_text(json.dumps({"text": "\n\n".join(TEXTS)}))
    assert read(lines, loaded) == read(whole, loaded)


def test_a_packed_text_is_read(loaded: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "text.txt.gz"
    path.write_bytes(gzip.compress("\n\n".join(TEXTS).encode()))
    assert read(path, loaded).startswith(TEXTS[0])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"text\.txt\.gz cannot be read: EOFError"):
        read(path, loaded)


def messages(number: int, names: Sequence[str] = ("role", "content")) -> list[dict[str, str]]:
    speakers = ("user", "assistant") if names[0] == "role" else ("human", "gpt")
    words = (f"Question {number}?", f"Answer {number}.")
    return [dict(zip(names, pair, strict=True)) for pair in zip(speakers, words, strict=True)]


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".parquet", "data set"])
@pytest.mark.parametrize("field", ["messages", "conversations"])
def test_conversations_are_written_by_the_template(
    chats: LoadedModel, tmp_path: Path, kind: str, field: str
) -> None:
    names = ("role", "content") if field == "messages" else ("from", "value")
    rows = [{field: messages(number, names)} for number in range(40)]
    if kind == "data set":
        write(tmp_path / "train.jsonl", rows)
        source = f"datasets:{tmp_path}"
    else:
        source = str(write(tmp_path / f"chats{kind}", rows))
    expected = "".join(f"<user>Question {n}?\n<assistant>Answer {n}.\n" for n in range(8))
    assert read(source, chats).startswith(expected)


@pytest.mark.parametrize("empty", [None, ""])
def test_the_field_is_one_that_has_a_value(
    chats: LoadedModel, tmp_path: Path, empty: str | None
) -> None:
    rows = [{"text": empty, "messages": messages(number)} for number in range(40)]
    path = write(tmp_path / "chats.jsonl", [{"text": None, "messages": None}, *rows])
    assert read(path, chats).startswith("<user>Question 0?\n<assistant>Answer 0.\n<user>")


def test_a_conversation_has_no_second_beginning(loaded: LoadedModel, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(opens=True)
    tokenizer.chat_template = "{{ bos_token }}" + TEMPLATE
    path = write(tmp_path / "chats.jsonl", [{"messages": messages(n)} for n in range(40)])
    found = load_calibration(config(path), replace(loaded, tokenizer=tokenizer))
    sequences = torch.cat([found.library, *found.search, found.heldout])
    assert (sequences[:, 0] == 0).all() and not (sequences[:, 1:] == 0).any()


def damaged(path: Path) -> None:
    path.write_text(write(path, [{"text": t} for t in TEXTS]).read_text()[:-3])


def words(path: Path) -> None:
    write(path, [{"words": "a"}])


PROBLEMS = {
    "damaged.jsonl": (damaged, r"cannot be read after row 39: JSONDecodeError"),
    "damaged.json": (damaged, r"cannot be read after row 0: JSONDecodeError"),
    "text.json": (lambda p: p.write_text("no JSON"), r"cannot be read after row 0"),
    "deep.json": (lambda p: p.write_text("[" * 100_000), r"cannot be read after row 0: Recursion"),
    "list.jsonl": (lambda p: p.write_text("[1]\n"), r"row 1 is no object with fields"),
    "number.json": (lambda p: p.write_text("3"), r"row 1 is no object with fields"),
    "null.jsonl": (lambda p: p.write_text("null\n"), r"row 1 is no object with fields"),
    "binary.csv": (lambda p: p.write_bytes(b"\xff\xfe\x00"), r"cannot be read after row 0"),
    "text.parquet": (lambda p: p.write_text("no Parquet"), r"cannot be read after row 0: Arrow"),
    "no.gz": (lambda p: p.write_text("not packed"), r"cannot be read: BadGzipFile"),
    "words.jsonl": (words, r"none of the text columns text, .* it has words: name one by calibr"),
    "words.csv": (words, r"none of the text columns text, .* it has words"),
    "later.jsonl": (
        lambda p: write(p, [{"text": "a"}, {"words": "a"}]),
        r"row 2 has no field 'text', only words: name another by calibration\.field",
    ),
    "numbers.jsonl": (
        lambda p: write(p, [{"text": 3}]),
        r"row 1 has neither text nor a conversation in 'text', but int",
    ),
    "half.jsonl": (
        lambda p: write(p, [{"text": "a"}, {"text": "b\ud800"}]),
        r"row 2 has half a letter .*'\\ud800'\) at character 2: mend",
    ),
    "half_chat.jsonl": (
        lambda p: write(p, [{"messages": [{"role": "user", "content": "\udfff"}]}]),
        r"row 1 has half a letter",
    ),
    "empty.jsonl": (lambda p: p.write_text(""), r"only 0 sequences of 32 tokens"),
    "empty.json": (lambda p: p.write_text("[]"), r"only 0 sequences of 32 tokens"),
    "nulls.jsonl": (lambda p: write(p, [{"text": None}] * 9), r"only 0 sequences of 32 tokens"),
    "chat.jsonl": (
        lambda p: write(p, [{"messages": [{"role": "tool", "content": "x"}]}]),
        r"row 1: the tokenizer's chat template does not take .* Unknown role tool",
    ),
    "nameless.jsonl": (
        lambda p: write(p, [{"conversations": [{"from": "human"}]}]),
        r"row 1: the tokenizer's chat template does not take",
    ),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_file_that_does_not_serve_is_one_line(
    chats: LoadedModel, tmp_path: Path, name: str
) -> None:
    make, message = PROBLEMS[name]
    make(tmp_path / name)
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path / name, chats)
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_a_tokenizer_without_a_template_is_one_line(loaded: LoadedModel, tmp_path: Path) -> None:
    path = write(tmp_path / "chats.jsonl", [{"messages": messages(1)}])
    with pytest.raises(DataError, match=r"row 1 is a conversation, but .* no chat template"):
        read(path, loaded)


def test_the_same_documents_in_other_formats_are_cut_apart(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    rows = [{"text": text} for text in TEXTS]
    lines, table = (write(tmp_path / name, rows) for name in ("rows.jsonl", "rows.parquet"))
    once = load_calibration(config(lines), loaded)
    twice = load_calibration(config(lines, heldout_source=str(table)), loaded)
    assert once.fingerprint == twice.fingerprint


@pytest.mark.parametrize("length", [32, 128])
def test_the_same_lines_joined_otherwise_are_passed_over(
    loaded: LoadedModel, tmp_path: Path, length: int
) -> None:
    letters = np.array(list("abcdefghijklmnop "))
    lines = ["".join(line) for line in np.random.default_rng(0).choice(letters, size=(300, 45))]
    text = tmp_path / "text.txt"
    text.write_text("\n".join(lines))
    other = str(write(tmp_path / "rows.jsonl", [{"text": line} for line in lines]))
    found = load_calibration(config(text, heldout_source=other, length=length), loaded)
    assert loaded.tokenizer is not None
    seen = loaded.tokenizer.decode(torch.cat([found.library, *found.search]).flatten())
    held = loaded.tokenizer.decode(found.heldout.flatten())
    common = {i + k for i in range(len(held) - 15) if held[i : i + 16] in seen for k in range(16)}
    assert found.repeated == len(common) <= found.heldout.numel() // 2
    assert found.left_out >= 7 * length
    everything = {"search_sequences": len(text.read_text()) // length - 3}
    with pytest.raises(DataError, match=r"rows\.jsonl has .* in common with .*text\.txt"):
        load_calibration(config(text, heldout_source=other, length=length, **everything), loaded)


def test_runs_that_two_texts_have_in_common_are_told(loaded: LoadedModel, tmp_path: Path) -> None:
    own = "".join(f"What only the other file says, the {n}th time. " for n in range(50))
    quoted = f"{own[:90]}{TEXTS[0]}{own[90:]}"
    text, other = tmp_path / "text.txt", tmp_path / "other.txt"
    text.write_text("\n\n".join(TEXTS))
    other.write_text(quoted)
    found = load_calibration(config(text, heldout_source=str(other), length=128), loaded)
    assert found.left_out == 0
    assert len(TEXTS[0]) <= found.repeated < len(TEXTS[0]) + 16
    assert any("repeats" in note and f" {found.repeated} of" in note for note in found.notes("x"))
