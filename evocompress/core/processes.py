"""Several processes that do one work together, as torchrun or accelerate starts them.

Each computes its part, on a device of its own; the first alone writes and speaks. They talk through
`torch.distributed`: what is small by gloo, weights and gradients by what their device has.
Where there is one process, all functions do what it would do alone.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from evocompress.core.errors import ConfigError, RunError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Of the environment, by which torchrun and accelerate tell a process its place."""

LONGEST_WAIT = timedelta(days=30)
"""For one another. The launcher ends all as soon as one of them has died."""

_store: Any = None
_times = itertools.count()


def launched() -> int:
    """How many processes the launcher has started; 1 where there is none."""
    return int(os.environ["WORLD_SIZE"]) if all(map(os.environ.get, VARIABLES)) else 1


def rank() -> int:
    """The number of this process among them, from 0."""
    return int(os.environ["RANK"]) if launched() > 1 else 0


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return rank() == 0


def process_count() -> int:
    """How many processes work together now."""
    return launched() if _store is not None else 1


def process_number() -> int:
    """The number of this process among those that work together now."""
    return rank() if _store is not None else 0


@contextmanager
def joined() -> Iterator[None]:
    """Has the processes that were launched work together, each with the GPU of its number.

    Raises:
        RunError: One of the others has ended.
    """
    global _store
    if launched() == 1:
        yield
        return
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    gpu = int(os.environ["LOCAL_RANK"])
    if gpu < torch.cuda.device_count():
        torch.cuda.set_device(gpu)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    launchers, number, count = next(rendezvous("env://"))
    _store = PrefixStore(str(next(_times)), launchers)  # whose keys of the last time are left
    place: Any = {"rank": number, "world_size": count, "timeout": LONGEST_WAIT}
    dist.init_process_group(backend, store=_store, **place)
    logging.getLogger("evocompress").disabled = number > 0
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise RunError(
                f"another of the {count} processes has ended: see what it says, and go on with "
                "--resume"
            ) from error
        raise
    dist.destroy_process_group()
    _store = None


def first_to_say(text: str) -> bool:
    """Whether none of the other processes has said this already, as far as can be known."""
    if _store is None:
        return is_first()
    try:
        return bool(_store.add(hashlib.sha256(text.encode()).hexdigest(), 1) == 1)
    except RuntimeError:  # the launcher is gone
        return True


def check_alone(what: str) -> None:
    """Refuses several processes for what would do the same work in each of them.

    Raises:
        RunError: There are several.
    """
    if launched() > 1:
        raise RunError(
            f"{what} works in one process, and {launched()} were started: only 'evocompress heal' "
            "shares its work out among several"
        )


def check_device(name: str) -> None:
    """Refuses a device that several processes would have to share.

    Args:
        name: That of the model, as ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        ConfigError: It is one GPU, or there are too few of them.
    """
    if process_count() == 1 or name == "cpu":
        return
    import torch

    there, number = torch.cuda.device_count(), int(os.environ["LOCAL_RANK"])
    if ":" in name:
        raise ConfigError(
            f"model.device={name} is one device, and {process_count()} processes have one each: "
            "set it to auto"
        )
    if 0 < there <= number:
        raise ConfigError(
            f"there are {there} GPUs here for more processes: start as many as there are GPUs"
        )


def by_first(make: Callable[[], T]) -> T:
    """Has the first process do something, such as writing, while the others wait.

    Returns:
        What it made, in all of them; it should be small.

    Examples:
        >>> by_first(lambda: 1 + 1)
        2
    """
    if process_count() == 1:
        return make()
    import torch.distributed as dist

    found: list[Any] = [make() if is_first() else None]
    dist.broadcast_object_list(found, 0, device=_cpu())
    made: T = found[0]
    return made


@contextmanager
def first_goes_ahead() -> Iterator[None]:
    """Has the others do only afterwards what the first does, such as making files they find."""
    if not is_first():
        by_first(lambda: None)
    yield
    if is_first():
        by_first(lambda: None)


def own_part(count: int) -> range:
    """Which of so many equal pieces of work this process does.

    Examples:
        >>> list(own_part(3))
        [0, 1, 2]
    """
    return range(process_number(), count, process_count())


def of_all(values: Mapping[int, float], count: int) -> list[float]:
    """The values of all pieces of work, of which each process knows its own.

    What several know is added up. The order does not depend on the number of processes, so that
    sums are the same to the bit.

    Examples:
        >>> of_all({0: 0.5, 1: 0.25}, 2)
        [0.5, 0.25]
    """
    import torch

    whole = torch.zeros(count, dtype=torch.float64)
    for place, value in values.items():
        whole[place] = value
    if process_count() > 1:
        torch.distributed.all_reduce(whole)
    found: list[float] = whole.tolist()
    return found


def anywhere(flags: Sequence[bool]) -> list[bool]:
    """Which of some flags are set in at least one process.

    Examples:
        >>> anywhere([True, False])
        [True, False]
    """
    if process_count() == 1:
        return list(flags)
    return [number > 0 for number in of_all(dict(enumerate(map(float, flags))), len(flags))]


def check_same(value: object, what: str) -> None:
    """Refuses to work together on different things, such as other files on another node.

    Raises:
        RunError: The processes have another value.
    """
    if by_first(lambda: value) != value:
        raise RunError(f"the processes see another {what}: the folders must be the same for all")


def owners(sizes: Sequence[int], count: int) -> list[int]:
    """Which process keeps which tensor, so that all keep about the same: the largest ones first.

    Longest-processing-time-first (Graham 1969): at most 4/3 of the best.

    Args:
        sizes: Of the tensors.
        count: Of the processes.

    Examples:
        >>> owners([1, 3, 2], 2)
        [1, 0, 1]
    """
    loads, found = [0] * count, [0] * len(sizes)
    for place in sorted(range(len(sizes)), key=lambda place: -sizes[place]):
        found[place] = loads.index(min(loads))
        loads[found[place]] += sizes[place]
    return found


def reduce_to(owner: int, tensor: Tensor) -> Tensor:
    """Adds up a tensor over the processes for its owner; the others get nothing of use.

    Args:
        owner: The number of a process.
        tensor: One of the same shape in each; it is overwritten.
    """
    if process_count() == 1:
        return tensor
    import torch.distributed as dist

    whole = tensor.contiguous()
    dist.reduce(whole, owner)
    return whole


def broadcast_from(owner: int, tensor: Tensor) -> None:
    """Overwrites a contiguous tensor by that of its owner."""
    if process_count() > 1:
        import torch.distributed as dist

        dist.broadcast(tensor, owner)


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of all processes in main memory of the first; nothing in the others.

    Where there is one process they are its own, not copies.
    """
    if process_count() == 1:
        return dict(tensors)
    import torch
    import torch.distributed as dist

    mine = [(name, tensor.shape, tensor.dtype) for name, tensor in tensors.items()]
    theirs: list[Any] = [None] * process_count()
    dist.all_gather_object(theirs, mine)
    if not is_first():
        for tensor in tensors.values():
            dist.send(tensor.detach().cpu().contiguous(), 0)
        return {}
    found = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    for number, known in enumerate(theirs[1:], start=1):
        for name, shape, dtype in known:
            found[name] = torch.empty(shape, dtype=dtype)
            dist.recv(found[name], number)
    return found


def _cpu() -> Any:
    import torch

    return torch.device("cpu")
