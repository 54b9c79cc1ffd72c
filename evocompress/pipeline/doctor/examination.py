"""All facts of a computer, gathered in an order in which nothing breaks what comes later."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from packaging.specifiers import SpecifierSet

from evocompress.core.errors import one_line
from evocompress.core.progress import Reporter
from evocompress.pipeline.doctor.packages import (
    Declared,
    Package,
    import_failures,
    module_named,
    packages_here,
    wanted_here,
)

if TYPE_CHECKING:  # these import torch, which may be broken
    from evocompress.pipeline.doctor.computer import Computer
    from evocompress.pipeline.doctor.features import Feature
    from evocompress.pipeline.doctor.fits import Need
    from evocompress.pipeline.doctor.speed import Speed


@dataclass(frozen=True)
class Examination:
    """What was found.

    Attributes:
        python: Its version, and why it does not do (empty where it does).
        required: The packages without which nothing works.
        computer: Processor, memory, GPUs and disks; ``None`` where a required package is broken,
            and then nothing below was examined either.
        features: What is optional.
        needs: Of models of several sizes on the device that a run takes.
        speeds: Of the speed test, if it was asked for.
        failed: What of the speed test failed, and why.

    Examples:
        >>> python = Package("Python", ">=3.11", installed="3.11.7")
        >>> Examination(python, required=()).computer is None
        True
    """

    python: Package
    required: tuple[Package, ...]
    computer: Computer | None = None
    features: tuple[Feature, ...] = ()
    needs: tuple[Need, ...] = ()
    speeds: tuple[Speed, ...] = ()
    failed: tuple[str, ...] = ()


def examine(reporter: Reporter, *, speed: bool = True) -> Examination:
    """Examines this computer, and with `speed` how fast it is.

    Raises:
        RunError: It is not known what packages are wanted.
    """
    wanted = wanted_here()
    python = Package("Python", str(SpecifierSet(wanted.python)), platform.python_version())
    with reporter.stage("packages"):
        names = [module_named(each.name) for each in wanted.required]
        required = packages_here(wanted.required, import_failures(names))
    found = Examination(python, required)
    if any(each.obstacle for each in (python, *required)):
        return found
    return _examined(found, wanted, reporter, speed)


def _examined(known: Examination, wanted: Declared, reporter: Reporter, speed: bool) -> Examination:
    """The rest of an examination, for which all required packages are there."""
    from evocompress.pipeline.doctor import computer, features, fits

    with reporter.stage("features"):
        failures = import_failures(features.optional_modules(wanted))
        optional = (*features.extras(wanted, failures), *features.others(failures))
    with reporter.stage("devices"):
        here = computer.computer()
        needs = tuple(fits.needs(on_cpu=not here.gpus))
    speeds, failed = _speeds(here, reporter) if speed else ((), ())
    return Examination(known.python, known.required, here, optional, needs, speeds, failed)


def _speeds(here: Computer, reporter: Reporter) -> tuple[tuple[Speed, ...], tuple[str, ...]]:
    """The figures of the speed test, and what of it failed."""
    import torch

    from evocompress.pipeline.doctor import computer, speed

    devices = [torch.device("cpu"), *(torch.device("cuda", n) for n in range(len(here.gpus)))]
    folders = [computer.nearest_folder(disk.folder) for disk in here.disks if disk.writable]
    parts: list[tuple[str, Callable[[], Iterable[Speed]]]] = [
        *((f"a product on {each}", partial(speed.product_speeds, each)) for each in devices),
        ("a search of a tiny model", partial(speed.search_speed, "auto")),
        *((f"writing in {each}", partial(speed.disk_speeds, each)) for each in folders),
    ]
    found: list[Speed] = []
    failed = []
    with reporter.stage("speed"):
        for what, measure in parts:
            try:
                found += measure()
            except Exception as error:  # drivers fail with any type, and that is to be told
                failed.append(f"{what} fails: {one_line(error)}")
    return tuple(found), tuple(failed)
