"""What a worker is: a process that holds the model and answers requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evocompress.core.env_vars import EnvVars
from evocompress.core.errors import EvoCompressError, LibraryError, RunError, one_line
from evocompress.core.requests import Answer, Request
from evocompress.distributed.telemetry import tail, who

if TYPE_CHECKING:
    from evocompress.compression.library import Library
    from evocompress.core.config import RunConfig
    from evocompress.core.finetuning import Recipe
    from evocompress.pipeline.context import RunContext


@dataclass(frozen=True)
class Assignment:
    """What a worker is made from.

    Attributes:
        config: The run's configuration, JSON.
        library: Folder of its level library: one that every node sees, or in shared storage.
        expected: The fingerprints that the worker must come to, too.
        threads: CPU threads of torch.
        timed_on: The device, in words, of the run's latency table, unless it is forced.
        env_vars: Environment variables of the worker.
        versions: Those of the packages of the driver.
        timed: Whether the run asks for latencies.
        recipes: How its searcher may have candidates fine-tuned.
        proxy: A reference to its proxy, where that is an object that is not installed. In a list,
            which Ray does not look into, so that this is where it is imported.
    """

    config: str
    library: str | None
    expected: dict[str, Any]
    threads: int
    timed_on: str | None = None
    env_vars: EnvVars = EnvVars()
    versions: dict[str, str] = field(default_factory=dict)
    timed: bool = False
    recipes: tuple[Recipe, ...] = ()
    proxy: list[Any] | None = None


@dataclass(frozen=True)
class Refusal:
    """Why a worker cannot answer, in one line: a problem that the user can mend."""

    reason: str


class Worker:
    """Holds model, library and calibration tokens, loaded once."""

    def __init__(self, assignment: Assignment, calibration: Any) -> None:
        assignment.env_vars.enter()
        from evocompress.compression.live_model import LiveModel

        self._refusal: Refusal | None = None
        try:
            self._context = _context(assignment, calibration)
            self._executor = self._context.executor(
                LiveModel(self._context.loaded, self._context.library)
            )
        except EvoCompressError as error:
            # A constructor that raises would only show as a death.
            self._refusal = Refusal(one_line(error))

    def ready(self) -> Refusal | dict[str, Any]:
        """Who it is and on what it computes, once everything is loaded."""
        from evocompress.core.environment import machine

        return self._refusal or who() | {"machine": machine(self._context.loaded.model.device)}

    def log(self) -> str | None:
        """The end of what it printed."""
        return tail(who()["log"])

    def answer(self, requests: Sequence[Request]) -> list[Answer] | Refusal:
        """The answers to a batch, in any order."""
        if self._refusal:
            return self._refusal
        try:
            return list(self._executor.map(requests))
        except EvoCompressError as error:
            return Refusal(one_line(error))


def _context(assignment: Assignment, calibration: Any) -> RunContext:
    """A run on this process's own model."""
    import torch

    from evocompress.core.config import RunConfig
    from evocompress.core.progress import Silent
    from evocompress.pipeline.context import RunContext
    from evocompress.pipeline.run_folder import RunFolder

    _check_versions(assignment.versions)
    config = RunConfig.model_validate_json(assignment.config)
    _take_proxy(config.proxy.kind, assignment.proxy)
    library = config.library.model_copy(update={"path": _library(assignment.library, config)})
    config = config.model_copy(update={"executor": "local", "library": library, "threads": None})
    torch.set_num_threads(assignment.threads)
    context = RunContext(config, RunFolder(config.folder), Silent(), finished=True)
    context = context.with_parts(
        calibration=calibration, timed=assignment.timed, recipes=assignment.recipes
    )
    context = context.with_parts(library=_opened(context, assignment.library))
    _check(context, assignment)
    return context


def _check_versions(wanted: Mapping[str, str]) -> None:
    """Whether the packages are here that the driver has."""
    from evocompress.core.circumstances import Facts, differences
    from evocompress.core.environment import versions

    other = differences(Facts(versions=dict(wanted)), Facts(versions=versions(wanted)))
    if other:
        raise RunError(
            f"a worker has other versions than the driver ({'; '.join(other)}): install the same "
            "on all nodes"
        )


def _take_proxy(kind: str, reference: list[Any] | None) -> None:
    """Has a proxy that is not installed as the driver has it."""
    import ray

    from evocompress.evaluation.proxies import PROXIES

    if reference is None:
        return
    try:
        PROXIES[kind] = ray.get(reference[0])
    except Exception as error:
        raise RunError(
            f"a worker cannot import the proxy {kind} ({one_line(error)}): install its package on "
            "all nodes, or define it in the script that is run"
        ) from None


def _library(place: str | None, config: RunConfig) -> Path | None:
    """The folder of the library on this node."""
    from evocompress.core.files import cache_folder
    from evocompress.distributed.storage import fetched

    if place is None:
        return None
    return fetched(place, cache_folder() / "libraries") if config.ray.storage else Path(place)


def _opened(context: RunContext, place: str | None) -> Library | None:
    """The level library; this node's own copy is made anew where it is damaged."""
    from evocompress.core.files import cache_folder
    from evocompress.distributed.storage import mended

    if place is None:
        return None
    try:
        return context.existing_library()
    except LibraryError:
        if not context.config.ray.storage:
            raise
        mended(place, cache_folder() / "libraries")
        return context.existing_library()


def _check(context: RunContext, assignment: Assignment) -> None:
    """Whether this worker computes what the run's record says."""
    from evocompress.core.environment import describe

    found = context.circumstances()
    wrong = [key for key, value in assignment.expected.items() if found[key] != value]
    if wrong:
        raise RunError(
            f"a worker differs from the run in {', '.join(wrong)} "
            f"({', '.join(f'{found[key]} instead of {assignment.expected[key]}' for key in wrong)})"
            ": give all nodes the same model, library and kind of device"
        )
    device = describe(context.loaded.model.device)
    if assignment.timed_on not in (None, device):
        raise RunError(
            f"a worker computes on '{device}', but the latency table is of "
            f"'{assignment.timed_on}': give all nodes that device, or take the table for theirs "
            "with latency.force=true"
        )
