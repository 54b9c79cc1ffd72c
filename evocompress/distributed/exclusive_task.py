"""One task on a Ray cluster that shares its device with no other one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from evocompress.core.config import RunConfig
from evocompress.core.env_vars import EnvVars, env_vars_of, told_to_ray
from evocompress.core.errors import ConfigError, EvoCompressError, RunError, one_line
from evocompress.distributed.cluster import nodes_with, start, too_much, whole_gpus
from evocompress.distributed.telemetry import Who, where, who

Tell = Callable[[Any], None]
"""Takes what a job has to say while it works."""

Job = Callable[[Tell], Any]
"""What is to be done, in the other process."""

POLL_SECONDS = 1.0

LONG_SECONDS = 60.0
"""After which it is said that the task has not begun."""

GROW_SECONDS = 600.0
"""In which a cluster that has no node for the task must get one."""

LONGEST_REASON = 200
"""Letters of what Ray says about a death."""


@dataclass(frozen=True)
class ExclusiveTask:
    """A job, its name in messages, and what the user is to do where its process dies.

    With `quiet_node` a job that does not compute on a GPU has all CPUs of a node instead of those
    of a worker, so that nothing else that Ray runs is on that node.
    """

    job: Job
    name: str
    quiet_node: bool
    again: str


@dataclass(frozen=True)
class _Done:
    """The last thing that a task says."""

    result: Any


def run_alone(
    config: RunConfig, task: ExclusiveTask, told: Tell, say: Callable[[str], None]
) -> Any:
    """Has a task done on a cluster, alone on a whole GPU where the run computes on one.

    Raises:
        ConfigError: Ray is not installed, there is no such cluster, or none of its nodes has what
            the task takes.
        EvoCompressError: What the job raises.
        RunError: It has another error, or its process dies.
    """
    stop = start(config.ray)
    try:
        return _listen(_begun(config, task, say), task, told, say)
    finally:
        stop()


def run_beside(
    config: RunConfig, tasks: Sequence[ExclusiveTask], told: Tell, say: Callable[[str], None]
) -> list[Any]:
    """Has several tasks done, each as `run_alone` has one, as many at a time as there is room for.

    Returns:
        Their results, in order.

    Raises:
        EvoCompressError: As `run_alone`, for the first task that fails; the others are ended.
    """
    stop = start(config.ray)
    try:
        words = [_begun(config, task, say) for task in tasks]
        with ThreadPoolExecutor(len(tasks)) as pool:
            each = zip(words, tasks, strict=True)
            results = [pool.submit(_listen, said, task, told, say) for said, task in each]
            try:
                wait(results, return_when=FIRST_EXCEPTION)
                # The reason is that of the first failure: the others fail as they are ended.
                for result in sorted(results, key=lambda one: not (one.done() and one.exception())):
                    result.result(timeout=0)
            except BaseException:
                _end(words)
                raise
        return [result.result() for result in results]
    finally:
        stop()


def _end(words: Sequence[Any]) -> None:
    """Ends tasks that are running or wait for room."""
    import ray

    for said in words:
        ray.cancel(said, force=True)


def _begun(config: RunConfig, task: ExclusiveTask, say: Callable[[str], None]) -> Any:
    """What a task will say, which begins as soon as there is room."""
    import ray

    remote: Any = ray.remote(_work).options(**_options(config, task, say))
    # In a list it is unpacked there, and what it imports imported, only when it is asked for.
    job = [ray.put(task.job)]
    return remote.remote(env_vars_of(config.ray), job)


def _work(env_vars: EnvVars, job: Sequence[Any]) -> Iterator[Any]:
    """Yields who works, what the job says, and its result; in the task's process."""
    import ray

    env_vars.enter()
    work: Job = ray.get(job[0])
    yield who()
    said: SimpleQueue[Any] = SimpleQueue()
    over = object()
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(work, said.put)
        working.add_done_callback(lambda _: said.put(over))
        while (word := said.get()) is not over:
            yield word
    yield _Done(working.result())


def _options(config: RunConfig, task: ExclusiveTask, say: Callable[[str], None]) -> dict[str, Any]:
    """What Ray is asked for."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    wanted = {"CPU": config.ray.cpus, "GPU": whole_gpus(config)}
    nodes = _nodes(config, wanted, task, say)
    options: dict[str, Any] = {
        "num_cpus": wanted["CPU"],
        "num_gpus": wanted["GPU"],
        "max_retries": 0,
        "runtime_env": told_to_ray(config.ray),
    }
    if task.quiet_node and not wanted["GPU"]:
        here = ray.get_runtime_context().get_node_id()
        node = min(nodes, key=lambda node: (node["NodeID"] != here, node["NodeID"]))
        options["num_cpus"] = node["Resources"]["CPU"]
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    return options


def _nodes(
    config: RunConfig, wanted: dict[str, float], task: ExclusiveTask, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """The nodes on which the task could be; a cluster that is not our own has time to grow."""
    patience = GROW_SECONDS if config.ray.address is not None else 0.0
    began, said = time.monotonic(), False
    while not (nodes := nodes_with(wanted)):
        if time.monotonic() - began >= patience:
            raise ConfigError(f"{too_much(wanted)}: give {task.name} less, or another cluster")
        if not said:
            said = True
            say(f"{too_much(wanted)}: {task.name} waits {patience:.0f} s for the cluster to grow")
        time.sleep(POLL_SECONDS)
    return nodes


def _listen(words: Any, task: ExclusiveTask, told: Tell, say: Callable[[str], None]) -> Any:
    """Passes on what a running task says, and returns its result."""
    import ray

    began, warned = time.monotonic(), False
    worker: Who | None = None
    try:
        while True:
            if not ray.wait([words], timeout=POLL_SECONDS)[0]:
                if not (worker or warned) and time.monotonic() - began > LONG_SECONDS:
                    warned = True
                    say(
                        f"{task.name} has not begun after {LONG_SECONDS:.0f} s: what it takes is "
                        "in use ('ray status' tells)"
                    )
                continue
            word = ray.get(next(words))
            if worker is None:
                worker = word
            elif isinstance(word, _Done):
                return word.result
            else:
                told(word)
    except ray.exceptions.RayError as error:
        raise _as_ours(error, task, worker) from None
    except BaseException:
        _end([words])
        raise


def _as_ours(error: Exception, task: ExclusiveTask, worker: Who | None) -> EvoCompressError:
    """An error within a job, or the death of its process, in one line."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, EvoCompressError):
        return cause
    reason = one_line(cause or error)[:LONGEST_REASON]
    log = f": see {where(worker)}" if worker else ""
    return RunError(f"{task.name} failed on a worker ({reason}){log}; {task.again}")
