"""The offers of many types, found by other processes and kept in the cache folder."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from threading import local
from typing import Any, Literal

import torch
import transformers

from evocompress.core.errors import ModelError, RunError, one_line
from evocompress.core.files import cache_folder, naming_disk_errors, read_as, write_json
from evocompress.core.progress import Reporter
from evocompress.core.sources import digest_of, versions_of
from evocompress.models.checkpoints import quiet_transformers
from evocompress.models.config_keys import lasting
from evocompress.models.families import FAMILIES
from evocompress.models.families.derivation.defaults import default_config
from evocompress.pipeline.offers.offers import Offers, nothing
from evocompress.pipeline.offers.types import class_name, offers_of_type, type_names

LIMIT_S = 180.0
"""Seconds after which a type is given up."""

MEMORY = 8 * 2**30
"""Bytes that a process may take; a type that wants more is told so, and the others go on."""

WORKERS = 2
"""Processes that try types."""


class Unanswered(Exception):
    """A process gave no answer; the message says why."""


class OfferWorker:
    """A process that answers one question after the other, and may be slow or die.

    Args:
        answer: What it does, a function of a module.
        limit: Seconds that it has for a question.
        start: How the process is started, in the words of multiprocessing.
    """

    def __init__(
        self,
        answer: Callable[[str], Any],
        limit: float = LIMIT_S,
        start: Literal["spawn", "fork"] = "spawn",
    ) -> None:
        self.answer = answer
        self.limit = limit
        self.start = start
        self._process: Any = None
        self._end: Any = None

    def ask(self, question: str) -> Any:
        """The answer.

        Raises:
            Unanswered: There is none in time.
        """
        if self._process is None:
            context: Any = get_context(self.start)
            self._end, other = context.Pipe()
            self._process = context.Process(target=_serve, args=(other, self.answer), daemon=True)
            self._process.start()
            other.close()
        try:
            self._end.send(question)
            if self._end.poll(self.limit):
                return self._end.recv()
            reason = f"trying it takes longer than {self.limit:.0f} s"
        except (EOFError, OSError):
            reason = "the process that tried it ended"
        self.close()
        raise Unanswered(reason)

    def close(self) -> None:
        """Ends the process; the next question starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._end.close()
            self._process = None


def _serve(end: Connection, answer: Callable[[str], Any]) -> None:
    """What the process does."""
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    while True:
        try:
            question = end.recv()
        except EOFError:
            return
        end.send(answer(question))


def offers_by_type(
    names: Sequence[str] = (), reporter: Reporter | None = None, limit: float = LIMIT_S
) -> list[Offers]:
    """The offers of some types, or of all; those that are not known yet are found now.

    Raises:
        ModelError: There is no such type in the installed transformers, or none of the kind.
        RunError: The cache cannot be written.
    """
    known = type_names()
    for name in names:
        if name not in known:
            raise ModelError(
                f"transformers {transformers.__version__} has no language model and no encoder "
                f"of texts or images of type {name!r}, and no family is of that type: "
                "`evocompress models` lists all types"
            )
    wanted = list(dict.fromkeys(names)) or known
    found = {name: kept for name in wanted if (kept := _kept(name)) is not None}
    missing = [name for name in wanted if name not in found]
    if missing:
        found |= _found(missing, reporter or Reporter(), limit)
    return [found[name] for name in wanted]


def _found(names: Sequence[str], reporter: Reporter, limit: float) -> dict[str, Offers]:
    """The offers of some types, which are kept, but for those of processes without an answer."""
    found: dict[str, Offers] = {}
    workers: list[OfferWorker] = []
    own = local()

    def ask(name: str) -> Offers:
        if not hasattr(own, "worker"):
            own.worker = OfferWorker(offers_of_type, limit)
            workers.append(own.worker)
        try:
            answer: Offers = own.worker.ask(name)
        except Unanswered as reason:  # a quieter machine may answer
            return nothing(name, class_name(name), str(reason))
        _keep(answer)
        return answer

    pool = ThreadPoolExecutor(min(WORKERS, len(names)))
    try:
        with reporter.stage("types of models") as advance:
            for done in as_completed([pool.submit(ask, name) for name in names]):
                offers = done.result()
                found[offers.model_type] = offers
                advance(len(found), len(names), offers.model_type)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.close()
    return found


def _kept(model_type: str) -> Offers | None:
    """What the cache has of a type; damaged files are as none."""
    try:
        return read_as(_path(model_type), Offers)
    except (RunError, OSError):
        return None


def _keep(offers: Offers) -> None:
    path = _path(offers.model_type)
    with naming_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(offers))


def _path(model_type: str) -> Path:
    """The file of a type; its name tells all on which the offers depend."""
    try:
        with quiet_transformers():
            config: Any = lasting(default_config(model_type).to_dict())
    except Exception as error:  # the same error is what is offered
        config = one_line(error)
    said = json.dumps([*_code(), model_type, config], default=str, sort_keys=True)
    return cache_folder() / "offers" / f"{model_type}-{digest_of(said)}.json"


def _code() -> tuple[str, ...]:
    """What tells this program and the libraries from other versions."""
    return (*versions_of("core", "export", "models", "pipeline/offers"), *FAMILIES.usable())
