"""The programs that a checkpoint can be written for, and the formats that each of them loads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version

from evocompress.errors import ExportError


@dataclass(frozen=True)
class Program:
    """Something that loads checkpoints.

    Attributes:
        formats: {format: how the program runs it}, the one to be preferred first.
        package: The Python package that is or holds it.
        tried: The version of the package that the formats were tried with, and the oldest that is
            accepted.
    """

    formats: Mapping[str, str]
    package: str
    tried: str


PROGRAMS: dict[str, Program] = {
    "transformers": Program(
        {
            "stock": "the model's own class",
            "hf": "the classes of evocompress.hf, or of the modeling file with trust_remote_code",
        },
        package="transformers",
        tried="5.23.0",
    ),
    "vllm": Program(
        {
            "stock": "the model's own class",
            "folded": "vLLM's transformers backend",
            "deci": "vLLM's DeciLM class",
        },
        package="vllm",
        tried="0.32.0",
    ),
    "llama.cpp": Program(
        {"gguf": "llama.cpp's architecture deci"}, package="llama-cpp-python", tried="0.3.36"
    ),
}


def program_named(name: str) -> Program:
    """The program of a name.

    Raises:
        ExportError: There is none.
    """
    if name not in PROGRAMS:
        raise ExportError(f"--for: unknown program '{name}': choose {', '.join(PROGRAMS)}")
    return PROGRAMS[name]


def check_version(name: str, found: str | None = None) -> str:
    """Refuse a program that is older than the formats were tried with.

    Args:
        name: A key of `PROGRAMS`.
        found: Its version; by default that of the package in this environment, if it is here.

    Returns:
        What is to be said of one that is newer; else nothing.

    Raises:
        ExportError: It is older.
    """
    program = program_named(name)
    found = found or _installed(program.package)
    if found is None or Version(found) == Version(program.tried):
        return ""
    if Version(found) < Version(program.tried):
        raise ExportError(
            f"{program.package} {found} is older than {program.tried}, with which the formats for "
            f"{name} were tried: upgrade it, or leave --for out and choose the format with --format"
        )
    return f"{program.package} {found} is newer than {program.tried}, with which this was tried"


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
