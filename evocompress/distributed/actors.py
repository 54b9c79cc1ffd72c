"""The actors of a run: what each of them is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from evocompress.core.env_vars import env_vars_of, told_to_ray
from evocompress.core.requests import Evaluate, Request
from evocompress.distributed.cluster import anchored, check_workers_fit, gpus_each, places, start
from evocompress.distributed.executor import RayExecutor
from evocompress.distributed.storage import publish
from evocompress.distributed.telemetry import Telemetry
from evocompress.distributed.worker import Assignment, Worker

if TYPE_CHECKING:
    from evocompress.compression.live_model import LiveModel
    from evocompress.core.circumstances import Admit
    from evocompress.pipeline.context import RunContext
    from evocompress.pipeline.loop import Executor


def ray_executor(context: RunContext, live: LiveModel, admit: Admit) -> Executor:
    """Evaluation on Ray actors: each loads the model and maps the library.

    Calibration tokens go through the object store, once for each node.

    Raises:
        ConfigError: Ray is not installed, there is no such cluster, no room for a worker in it, or
            the shared storage cannot be used.
    """
    stop = start(context.config.ray)
    try:
        return _executor(context, live, admit, stop)
    except BaseException:
        stop()
        raise


def _executor(
    context: RunContext, live: LiveModel, admit: Admit, stop: Callable[[], None]
) -> RayExecutor:
    """The executor on a cluster that is there."""
    import ray

    config = context.config.ray
    check_workers_fit(config)
    calibration, assignment = ray.put(context.calibration), assignment_of(context)
    actor = ray.remote(Worker).options(
        num_cpus=config.cpus, num_gpus=gpus_each(config), runtime_env=told_to_ray(config)
    )

    def make() -> Any:
        return actor.remote(assignment, calibration)

    def order(requests: Sequence[Request]) -> list[Request]:
        return trie_order(requests, live)

    pool = context.calibration.pool
    telemetry = Telemetry(context.config.name, context.folder.workers, context.reporter.say)
    return RayExecutor(
        make,
        lambda: places(config),
        order,
        pool.requested,
        stop,
        telemetry,
        lambda who: admit(who["machine"]),
    )


def assignment_of(context: RunContext) -> Assignment:
    """What the workers of a run are made from."""
    import ray
    import torch

    from evocompress.core.environment import versions
    from evocompress.evaluation.proxies import PROXIES

    kind = context.config.proxy.kind
    library, storage = context.library, context.config.ray.storage
    table = None if context.config.latency.force else context.latency_table
    place = str(library.path.absolute()) if library else None
    if library and storage:
        place = publish(library.path, f"library-{library.fingerprint}", storage)
    config = context.config.model_copy(update={"model": anchored(context.config.model)})
    return Assignment(
        config=config.model_dump_json(),
        library=place,
        expected=context.circumstances(),
        threads=torch.get_num_threads(),
        timed_on=table.made.device if table else None,
        env_vars=env_vars_of(context.config.ray),
        versions=versions(context.packages),
        timed=context.timed,
        recipes=context.recipes,
        proxy=[ray.put(PROXIES[kind])] if PROXIES.is_given(kind) else None,
    )


def trie_order(requests: Sequence[Request], live: LiveModel) -> list[Request]:
    """Estimates first, then evaluations in the order of a walk over their trie."""
    from evocompress.evaluation.proxies.order import depth_first

    evaluations = [request for request in requests if isinstance(request, Evaluate)]
    order = depth_first([request.candidate for request in evaluations], live.units)
    others: list[Request] = [request for request in requests if not isinstance(request, Evaluate)]
    return [*others, *(evaluations[index] for index in order)]
