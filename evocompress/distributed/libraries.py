"""Building a level library on Ray: each task makes consecutive blocks.

With dense Hessians a block depends on no other one but for the hidden states that enter it. So that
nobody has to compute what comes before his blocks alone, these states are first made by all workers
together, each for its share of the sequences, and go through the object store. They are
computed in the same batches as in one process: the files are the same to the byte.

Ray starts a task again whose worker died; it then makes what is still missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evocompress.core.config import RayConfig, RunConfig
from evocompress.core.env_vars import env_vars_of, told_to_ray
from evocompress.core.errors import EvoCompressError, LibraryError, RunError, one_line
from evocompress.distributed.cluster import anchored, check_workers_fit, gpus_each, places, start
from evocompress.distributed.replica import Replica

if TYPE_CHECKING:
    from torch import Tensor

    from evocompress.compression.library.builder import BuildProgress, MakeBlocks
    from evocompress.compression.library.manifest import BlockRecord, Manifest
    from evocompress.models.loading import LoadedModel

RETRIES = 3
"""Workers that may die of a task before the build gives up."""

Say = Callable[[str], None]


def ray_blocks(config: RunConfig, say: Say) -> MakeBlocks:
    """Blocks made on a Ray cluster, where the library's Hessians are dense.

    `say` is told where the library is built in this process after all.
    """

    def blocks(
        loaded: LoadedModel,
        path: Path,
        manifest: Manifest,
        tokens: Tensor,
        batch: int,
        progress: BuildProgress,
    ) -> Iterator[tuple[int, BlockRecord]]:
        import torch

        from evocompress.compression.library.builder import make_blocks, observes, orders_of
        from evocompress.compression.library.dense import dense_model

        alone = None
        if manifest.recipe.propagated:
            alone = "library.hessians=propagated"
        elif config.ray.storage:
            alone = "ray.storage"
        if alone:
            say(f"{alone}: blocks are made one after the other, in this process")
            yield from make_blocks(loaded, path, manifest, tokens, batch, progress)
            return
        site = Site(
            model=anchored(config.model),
            fingerprint=loaded.fingerprint,
            path=path.absolute(),
            batch=batch,
            threads=torch.get_num_threads(),
            env_vars=env_vars_of(config.ray),
        )
        if not manifest.missing:
            return
        observed = observes(orders_of(dense_model(loaded), manifest))
        stop = start(config.ray)
        try:
            yield from _build(config.ray, site, manifest.missing, tokens, observed, progress)
        finally:
            stop()

    return blocks


@dataclass(frozen=True)
class Site(Replica):
    """What every task needs beside the tokens.

    Attributes:
        path: Folder of the library, which every node sees.
        batch: Sequences that pass a block together.
    """

    path: Path
    batch: int


def _pass_states(
    site: Site, tokens: Tensor, borders: Sequence[int], part: slice
) -> tuple[list[Tensor], ...] | list[Tensor]:
    """For some batches the dense states that enter each of the blocks `borders`, ascending.

    Of one border they are not in a tuple: Ray unpacks several results, but not a single one.
    """
    from evocompress.compression.library.hidden import HiddenStates

    states = HiddenStates(site.load(), tokens[part], site.batch)
    found = []
    for index in range(borders[-1] + 1):
        if index in borders:
            found.append(states.current)
        if index < borders[-1]:
            states.run(index, keep=True)
    return tuple(found) if len(found) > 1 else found[0]


def _make_range(
    site: Site, tokens: Tensor, todo: Sequence[int], *parts: list[Tensor]
) -> Iterator[tuple[int, BlockRecord]]:
    """Makes some blocks; `parts` are the states of all batches that enter the first of them.

    There are none where that is the model's first block, or no block reads any. Where this is
    the second attempt, what the first one has made is not made again.
    """
    from evocompress.compression.library.builder import Builder
    from evocompress.compression.library.manifest import read_manifest

    manifest = read_manifest(site.path)
    entering = [states for part in parts for states in part] if parts else None
    builder = Builder(site.load(), site.path, manifest, tokens, site.batch, entering)
    made = builder.build(todo, lambda *_: None, first=todo[0] if parts else 0)
    # A generator that Ray starts again has to yield the same once more.
    for index in todo:
        finished = manifest.blocks.get(index)
        yield (index, finished) if finished else next(made)


def _build(
    config: RayConfig,
    site: Site,
    todo: list[int],
    tokens: Tensor,
    observed: bool,
    progress: BuildProgress,
) -> Iterator[tuple[int, BlockRecord]]:
    """Starts all tasks, and yields what they make as it comes."""
    import ray

    from evocompress.core.leftovers import clear_leftovers

    check_workers_fit(config)
    options = {
        "num_cpus": config.cpus,
        "num_gpus": gpus_each(config),
        "max_retries": RETRIES,
        "runtime_env": told_to_ray(config),
    }
    workers = places(config)
    shares = _shares(todo, workers)
    shared = ray.put(tokens)
    borders = sorted({share[0] for share in shares} - {0}) if observed else []
    entering = _entering(site, tokens, shared, borders, workers, options)
    make: Any = ray.remote(_make_range).options(**options)
    running: list[Any] = [
        make.remote(site, shared, own, *entering.get(own[0], ())) for own in shares
    ]
    done = 0
    try:
        progress(done, len(todo), f"{len(shares)} workers")
        while running:
            first: Any = ray.wait(running, num_returns=1)[0][0]
            try:
                yield ray.get(next(first))
                done += 1
                progress(done, len(todo), f"{len(running)} workers")
            except StopIteration:
                running.remove(first)
        clear_leftovers(site.path)  # of workers that died
    except ray.exceptions.RayError as error:
        raise _as_ours(error) from None
    finally:
        for task in running:
            ray.cancel(task, force=True)


def _entering(
    site: Site,
    tokens: Tensor,
    shared: Any,
    borders: Sequence[int],
    workers: int,
    options: Mapping[str, Any],
) -> dict[int, list[Any]]:
    """For each border references to the states of all batches, in their order."""
    import ray

    if not borders:
        return {}
    forward: Any = ray.remote(_pass_states).options(**options, num_returns=len(borders))
    batches = _shares(range(0, len(tokens), site.batch), workers)
    tasks = [
        forward.remote(site, shared, borders, slice(own[0], own[-1] + site.batch))
        for own in batches
    ]
    found = [[task] if len(borders) == 1 else task for task in tasks]
    return {border: [parts[place] for parts in found] for place, border in enumerate(borders)}


def _shares(items: Sequence[int], workers: int) -> list[Sequence[int]]:
    """Consecutive parts, none empty, as even as can be."""
    count = min(workers, len(items))
    ends = [len(items) * (part + 1) // count for part in range(count)]
    return [items[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def _as_ours(error: Exception) -> EvoCompressError:
    """An error within a task, or the death of its workers, in one line."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, EvoCompressError):
        return LibraryError(one_line(cause))
    return RunError(
        f"building the level library failed on a worker ({one_line(cause or error)}): see its log; "
        "the same command goes on with the blocks that are missing"
    )
