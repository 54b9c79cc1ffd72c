"""Under what a run was made, and whether its values may be compared with those made now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from evocompress.core.files import read_as

HARMLESS = {"python", "safetensors", "pymoo"}
"""Versions on which no value depends. A searcher that asks otherwise is noticed by its replay."""


class Machine(BaseModel):
    """What computes.

    Attributes:
        device: Kind and model, as `evocompress.core.environment.describe` says it.
        instructions: Those of the processor that torch uses, e.g. ``AVX512``; empty where another
            device than the processor computes.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    device: str = ""
    instructions: str = ""


Admit = Callable[[Machine], None]
"""Told on what a worker computes before it is asked anything; raises if it is not to be."""


class Facts(BaseModel):
    """The facts that values depend on beside model, text and settings; unknown ones are empty.

    Attributes:
        versions: Of the packages that compute or search.
        device: Kind and model, as `evocompress.core.environment.describe` says it.
        instructions: Those of the processor that torch uses, e.g. ``AVX512``.
        dtype: What is computed in.
        threads: Of torch on the CPU.
        executor: Of the run: with ``ray`` other machines compute than the one of `device` and
            `instructions`.
        workers: These other machines, each kind once; empty until one has begun.
        processes: That worked together on a healing.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    versions: dict[str, str] = {}
    device: str = ""
    instructions: str = ""
    dtype: str = ""
    threads: int | None = None
    executor: str = "local"
    workers: tuple[Machine, ...] = ()
    processes: int = 1

    @property
    def machines(self) -> tuple[Machine, ...]:
        """What computes, as far as is known."""
        if self.executor != "local":
            return self.workers
        on_cpu = self.device.startswith("cpu")
        return (Machine(device=self.device, instructions=self.instructions if on_cpu else ""),)


class Change(Facts):
    """Other circumstances under which a run was made to go on.

    Attributes:
        step: The first step that is of them, or may be.
    """

    step: int


class Circumstances(Facts):
    """Those under which a run or a healing was begun.

    Attributes:
        changes: Where it was made to go on under others, in order.
    """

    changes: tuple[Change, ...] = ()

    @property
    def last(self) -> Facts:
        """Under what the last values were made."""
        return self.changes[-1] if self.changes else self


class Environment(Circumstances):
    """Where and when a run was started (``environment.json``).

    Attributes:
        git: The commit of the source tree.
        platform: The operating system.
        started: When.
    """

    git: str | None = None
    platform: str = ""
    started: str = ""


def read_environment(path: Path) -> Environment:
    """Reads ``environment.json``.

    Raises:
        RunError: It is missing or damaged.
    """
    remedy = "restore it, or delete it and go on with 'evocompress search --resume --force'"
    return read_as(path, Environment, remedy=remedy)


def differences(before: Facts, now: Facts, *, threads: bool = False) -> list[str]:
    """The facts that keep values of then and now from being compared, in words.

    With `threads` these are compared on every device, as a journal's header does.
    """
    pairs = [
        (name, before.versions[name], now.versions[name])
        for name in sorted(before.versions.keys() & now.versions.keys() - HARMLESS)
    ]
    for machine in now.machines:
        pairs += _others(before.machines, machine)
    if threads or any(machine.device.startswith("cpu") for machine in now.machines):
        pairs.append(("threads", str(before.threads or ""), str(now.threads or "")))
    pairs.append(("dtype", before.dtype, now.dtype))
    pairs.append(("processes", str(before.processes), str(now.processes)))
    return [f"{name} was {old}, is {new}" for name, old, new in pairs if _differ(old, new)]


def _others(before: Sequence[Machine], now: Machine) -> list[tuple[str, str, str]]:
    """What tells a machine from the last of others, unless it is of the kind of one of them."""
    told = [
        [(name, getattr(one, name), getattr(now, name)) for name in ("device", "instructions")]
        for one in before
    ]
    if any(not any(_differ(old, new) for _, old, new in pairs) for pairs in told):
        return []
    return told[-1] if told else []


def _differ(old: str, new: str) -> bool:
    """Whether two facts differ, as far as both are known."""
    return bool(old and new and old != new)


def environment_notes(environment: Environment, evaluated: Facts | None = None) -> list[str]:
    """Where a run was made to go on, or evaluated, under other circumstances, in words."""
    notes = change_notes(environment, "search")
    if evaluated and (found := differences(environment.last, evaluated)):
        notes.append(
            f"Evaluated under other circumstances than searched: {'; '.join(found)}. All rows are "
            "measured under those of the evaluation; what is predicted is of the search's."
        )
    return notes


def change_notes(known: Circumstances, what: str) -> list[str]:
    """Where `what`, a search or a healing, had to go on under other circumstances, in words."""
    notes: list[str] = []
    before: Facts = known
    for change in known.changes:
        found = "; ".join(differences(before, change)) or "not all circumstances are known"
        notes.append(
            f"From step {change.step + 1} the {what} was made to go on under other circumstances "
            f"(--force): {found}. Values from before and after are not quite comparable."
        )
        before = change
    return notes
