"""Types of the settings, each with its bounds, and the base of all their classes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    PlainSerializer,
    field_validator,
)
from pydantic_core import PydanticCustomError

from evocompress.core.foreign_text import controls, printable

LONGEST_TEXT = 4096
"""Characters of a path or another value."""

LONGEST_PART = 255
"""Bytes of a name within a path, as file systems have it."""

LONGEST_NAME = 200
"""Bytes of a folder's name, to which file systems leave 255 and some are added."""

ENV_VARS = "env_vars"
"""Where environment variables are in Ray's `runtime_env`."""

SECRET = "secret"
"""Type of an error whose input is not shown."""

DATASETS = "datasets:"
"""How the source of a data set begins."""


def _check_text(text: str) -> None:
    """Refuses control characters, NUL among them, and what cannot be a path."""
    if found := next(controls(text), None):
        raise ValueError(f"the control character {printable(found, '')} is not taken")
    if len(text) > LONGEST_TEXT or any(len(n.encode()) > LONGEST_PART for n in text.split("/")):
        raise ValueError(f"at most {LONGEST_TEXT} characters, {LONGEST_PART} bytes between two /")
    try:
        Path(text).expanduser()
    except RuntimeError:
        raise ValueError("there is no home of such a user") from None


def _is_name(name: str) -> str:
    """Refuses what is no name of a folder below another one, such as ``..``."""
    if not re.fullmatch(r"[\w.-]+", name) or not name.strip("."):
        raise ValueError("a name has letters, digits, '_', '-' and '.', and not dots alone")
    if len(name.encode()) > LONGEST_NAME:
        raise ValueError(f"a name has at most {LONGEST_NAME} bytes")
    return name


def _is_device(name: str) -> str:
    """Refuses what holds no weights or is no device."""
    if not re.fullmatch(r"auto|(cpu|cuda|mps|xpu)(:[0-9]{1,3})?", name):
        raise ValueError("give auto, cpu, cuda or cuda:N")
    return name


def _is_source(source: str) -> str:
    """Refuses a source that names nothing."""
    if not source.strip() or source.strip() == DATASETS:
        raise ValueError("give a text file, a folder, datasets:NAME or self")
    if source.strip().startswith(DATASETS):
        name, *more = source.strip().removeprefix(DATASETS).split(":")
        if not name or len(more) > 2:
            raise ValueError(
                "give datasets:NAME, datasets:NAME:CONFIG or datasets:NAME:CONFIG:SPLIT"
            )
    return source


def each_once(values: tuple[str, ...]) -> tuple[str, ...]:
    """Refuses what is named twice."""
    if len(set(values)) < len(values):
        raise ValueError("name each only once")
    return values


def _is_no_truth(value: Any) -> Any:
    """Refuses true and false, which Python counts as numbers."""
    if isinstance(value, bool):
        raise ValueError("give a number")
    return value


def _has_variables(value: dict[str, Any]) -> dict[str, Any]:
    """Refuses environment variables that are no texts by their names."""
    variables = value.get(ENV_VARS, {})
    if not isinstance(variables, dict) or not all(
        isinstance(name, str) and (text is None or isinstance(text, str))
        for name, text in variables.items()
    ):
        raise PydanticCustomError(SECRET, "env_vars must give names texts, in quotes, or null")
    return value


def _without_values(value: dict[str, Any]) -> dict[str, Any]:
    """An environment as it is written: the values of its variables may be secrets."""
    return value | {ENV_VARS: dict.fromkeys(value[ENV_VARS])} if ENV_VARS in value else value


def _words(value: Any) -> Any:
    """The words of a text with commas, or a list as it is."""
    return tuple(value.split(",")) if isinstance(value, str) else value


Whole = Annotated[int, BeforeValidator(_is_no_truth)]
"""A whole number and no truth value."""
Positive = Annotated[Whole, Field(gt=0, le=10**9)]
Size = Annotated[Whole, Field(gt=0, le=10_000)]
"""How many of something are held at a time."""
Many = Annotated[Whole, Field(gt=0, le=10**6)]
Tokens = Annotated[Whole, Field(gt=0, le=10**15)]
Seed = Annotated[Whole, Field(ge=0, lt=2**32)]
"""What every generator of random numbers in use takes."""
Cores = Annotated[Whole, Field(gt=0, le=1024)]
Length = Annotated[Whole, Field(ge=2, le=2**24)]
Number = Annotated[float, BeforeValidator(_is_no_truth)]
"""A finite number and no truth value; bounds are added where it is used."""
Weight = Annotated[Number, Field(gt=0, le=1e6)]
Trained = Annotated[
    tuple[
        Annotated[
            str, Field(pattern=r"^(all|norms|biases|head|lora|scales|last:[1-9][0-9]{0,3})$")
        ],
        ...,
    ],
    BeforeValidator(_words),
    Field(min_length=1),
]
"""What a healing trains."""
Globs = Annotated[tuple[str, ...], Field(max_length=1000)]
Name = Annotated[str, AfterValidator(_is_name)]
"""The name of a folder below another one."""
Source = Annotated[str, AfterValidator(_is_source)]
DeviceName = Annotated[str, AfterValidator(_is_device)]
RuntimeEnv = Annotated[
    dict[str, Any],
    AfterValidator(_has_variables),
    PlainSerializer(_without_values, when_used="json"),
]
Bytes = Annotated[ByteSize, Field(gt=0, le=2**60), BeforeValidator(_is_no_truth)]


class Strict(BaseModel):
    """Base of the configuration: immutable, unknown keys are errors, numbers are finite."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, str_max_length=LONGEST_TEXT
    )

    @field_validator("*", mode="before")
    @classmethod
    def _harmless(cls, value: Any) -> Any:
        """Refuses texts and paths that no file system or terminal takes as they are."""
        for text in value if isinstance(value, list | tuple) else (value,):
            if isinstance(text, str | Path):
                _check_text(str(text))
        return value
