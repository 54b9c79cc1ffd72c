"""Multiple-choice questions in plain files: ``NAME.jsonl``, one JSON object to a line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from evocompress.core.config_file import validate
from evocompress.core.errors import DataError, one_line
from evocompress.core.files import checksum_of
from evocompress.core.regular import check_regular

ENDING = ".jsonl"

BLANK = re.compile(r"(?<!\w)_(?!\w)")
"""The place in a sentence where a choice is to be put."""


def _readable(text: str) -> str:
    """Refuses what no tokenizer makes tokens of."""
    if not text.strip():
        raise ValueError("a text must not be empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("half a letter (a lone surrogate) cannot be read") from None
    return text


Text = Annotated[str, AfterValidator(_readable)]


class Question(BaseModel):
    """A question with its choices; other keys of a line are passed over.

    Attributes:
        question: What is asked, or a sentence with a blank.
        choices: The answers, two or more.
        label: Index of the right one.

    Examples:
        >>> Question(question="2 + 2 =", choices=["3", "4"], label=1).label
        1
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    question: Text
    choices: Annotated[list[Text], Field(min_length=2)]
    label: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _label_is_of_a_choice(self) -> Question:
        if self.label >= len(self.choices):
            raise ValueError(f"label {self.label} is of none of the {len(self.choices)} choices")
        return self


@dataclass(frozen=True)
class LocalTask:
    """The questions of a file.

    Attributes:
        name: Of the task.
        path: The file.
        questions: One or more, in the order of the lines.

    Examples:
        >>> row = {"question": "It is _ here.", "choices": ["hot", "cold"], "label": 1}
        >>> LocalTask("weather", Path("weather.jsonl"), (Question(**row),)).rows()
        [{'question': 1, 'choices': ['It is hot', 'It is cold'], 'label': 'here.'}]
    """

    name: str
    path: Path
    questions: tuple[Question, ...]

    @property
    def digest(self) -> str:
        """Checksum of the file (xxh3, 128 bits)."""
        return checksum_of(self.path)

    @cached_property
    def blanks(self) -> bool:
        """Whether each question is a sentence with one blank, a ``_``, and text after the blank.

        Then each choice is put there, and the text after the blank is scored (Trinh & Le 2018,
        1806.02847), as WinoGrande is. Otherwise the choices after the question are.
        """
        return all(
            len(parts) == 2 and parts[1].strip()
            for parts in (BLANK.split(each.question) for each in self.questions)
        )

    def rows(self) -> list[dict[str, Any]]:
        """Each question as the harness asks it: contexts, and what is scored after them."""
        return [self._row(each) for each in self.questions]

    def _row(self, question: Question) -> dict[str, Any]:
        if not self.blanks:
            return question.model_dump()
        before, after = BLANK.split(question.question)
        sentences = [before + choice for choice in question.choices]
        return {"question": question.label, "choices": sentences, "label": after.strip()}


def read_task(name: str, path: Path) -> LocalTask:
    """Reads the questions of a task.

    Raises:
        DataError: The file cannot be read, or holds no questions.
        ConfigError: A line is not a question; the message says which line, and why.
    """
    check_regular(path, DataError)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the task file {path} cannot be read: {one_line(error)}") from None
    questions = tuple(_questions(lines, path))
    if not questions:
        raise DataError(f"the task file {path} holds no questions: write one JSON object to a line")
    return LocalTask(name, path, questions)


def _questions(lines: list[str], path: Path) -> Iterator[Question]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                data = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where} is not JSON: {one_line(error)}") from None
            yield validate(Question, data, where)
