"""What several processes share out, as far as one can tell; the rest is in the tests of healing."""

from __future__ import annotations

from itertools import product

import pytest

from evocompress.core import processes
from evocompress.core.errors import ConfigError, RunError


def heaviest(sizes: list[int], owners: tuple[int, ...] | list[int], count: int) -> int:
    """What the process keeps that keeps most."""
    return max(
        sum(size for size, owner in zip(sizes, owners, strict=True) if owner == number)
        for number in range(count)
    )


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("sizes", [[3, 3, 2, 2, 2], [9, 1, 1, 1], [5], [4, 4, 4, 4, 4, 4, 1]])
def test_tensors_are_shared_out_nearly_as_well_as_can_be(sizes: list[int], count: int) -> None:
    found = processes.owners(sizes, count)
    best = min(
        heaviest(sizes, owners, count) for owners in product(range(count), repeat=len(sizes))
    )
    assert 3 * count * heaviest(sizes, found, count) <= (4 * count - 1) * best


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of three processes."""
    values = ("1", "1", "3", "127.0.0.1", "1")
    for name, value in zip(processes.VARIABLES, values, strict=True):
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("launched")
def test_what_works_in_one_process_is_refused_and_one_of_them_says_so() -> None:
    with pytest.raises(RunError, match="works in one process, and 3 were started"):
        processes.check_alone("evocompress search")
    assert not processes.first_to_say("something")
    assert processes.process_count() == 1, "they have not joined"


def test_each_piece_of_work_is_done_by_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "process_count", lambda: 3)
    parts = []
    for number in range(3):
        monkeypatch.setattr(processes, "process_number", lambda number=number: number)
        parts.append(list(processes.own_part(8)))
    assert parts == [[0, 3, 6], [1, 4, 7], [2, 5]]


@pytest.mark.usefixtures("launched")
def test_a_device_that_would_have_to_be_shared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    processes.check_device("cuda:1")  # for one process that is well
    monkeypatch.setattr(processes, "process_count", lambda: 3)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ConfigError, match="model.device=cuda:1 is one device"):
        processes.check_device("cuda:1")
    with pytest.raises(ConfigError, match="there are 1 GPUs here for more processes"):
        processes.check_device("auto")
    processes.check_device("cpu")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    processes.check_device("auto")
