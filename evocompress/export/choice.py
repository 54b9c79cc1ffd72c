"""Which format a candidate is written in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evocompress.core.canonical import without_caches
from evocompress.core.errors import ExportError
from evocompress.core.types import Candidate
from evocompress.export.formats import FORMATS, obstacle_of
from evocompress.export.programs import (
    PROGRAMS,
    check_task,
    check_version,
    program_named,
    untried,
)
from evocompress.export.stored import lane_of
from evocompress.models.loading import LoadedModel


@dataclass(frozen=True)
class Choice:
    """A format, and in one line why it is taken.

    Examples:
        >>> from evocompress.testing.tiny import tiny_loaded
        >>> choose_for(tiny_loaded("llama"), Candidate(), "vllm").name
        'stock'
    """

    name: str
    reason: str


def check_format(name: str) -> None:
    """Refuse the name of a format that there is not."""
    if name not in ("auto", *FORMATS):
        raise ExportError(f"unknown format '{name}': choose one of auto, {', '.join(FORMATS)}")


def check_program(program: str, name: str = "auto") -> str:
    """Refuse a program that does not load a format, as far as this is known without a model.

    Returns:
        What is to be said of its version, maybe nothing.
    """
    check_format(name)
    known = program_named(program)
    if name != "auto" and known.running(name) is None:
        raise ExportError(
            f"{program} does not load format '{name}': choose auto, {', '.join(known.formats)}"
        )
    return check_version(program)


def choose_format(loaded: LoadedModel, candidate: Candidate, name: str = "auto") -> str:
    """The format to write a candidate in: `name`, or for ``auto`` the first for transformers.

    That holds its weights; of what is cached in few bits ``candidate.json`` tells.

    Raises:
        ExportError: There is no such format, or it cannot express the candidate.
    """
    check_format(name)
    preferred = PROGRAMS["transformers"].preferred
    if name == "auto" and (weights := without_caches(candidate)) != candidate:
        return _first(loaded, weights, preferred, name, whole=candidate).name
    return _first(loaded, candidate, preferred, name).name


def choose_for(
    loaded: LoadedModel, candidate: Candidate, program: str, name: str = "auto"
) -> Choice:
    """The format to write a candidate in for a program.

    Args:
        loaded: The dense model.
        candidate: What is to be written.
        program: A key of `evocompress.export.programs.PROGRAMS`.
        name: A format that the program loads; ``auto`` is the first preferred one that can, before
            them those that hold the types of its matrices as such.

    Raises:
        ExportError: There is no such program, its version here is too old, it does not load the
            format or was not tried with the model's task, or none of its formats can express the
            candidate.
    """
    newer = check_program(program, name)
    check_task(program, loaded.family)
    known = program_named(program)
    forms = (*known.holding(lane_of(candidate)), *known.preferred)
    choice = _first(loaded, candidate, forms, name)
    running = known.running(choice.name)
    assert running is not None
    how = f"format '{choice.name}' for {program}, run by {running.how}"
    remarks = (how, choice.reason, untried(program, choice.name, loaded), newer)
    return Choice(choice.name, "; ".join(filter(None, remarks)))


def _first(
    loaded: LoadedModel,
    candidate: Candidate,
    formats: Sequence[str],
    name: str,
    whole: Candidate | None = None,
) -> Choice:
    """The first of some formats, or the one asked for, that can express a candidate.

    Where none can, those are told that can express it, or the `whole` one that it is a part of.
    """
    names = formats if name == "auto" else (name,)
    passed: list[str] = []
    for choice in names:
        reason = obstacle_of(choice, loaded, candidate)
        if reason is None:
            return Choice(choice, "; ".join(passed))
        passed.append(f"format '{choice}' {reason}")
    told = [one for one in FORMATS.usable() if not hasattr(FORMATS[one], "like")]
    able = [one for one in told if obstacle_of(one, loaded, whole or candidate) is None]
    raise ExportError(f"{passed[-1]}: {_listed(able)} can")


def _listed(formats: Sequence[str]) -> str:
    """The formats in words."""
    names = ", ".join(f"'{name}'" for name in formats)
    return f"format{'s' * (len(formats) > 1)} {names}" if formats else "no format"
