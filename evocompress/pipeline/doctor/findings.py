"""What follows from the facts: what is broken, and what will not work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from evocompress.pipeline.doctor.examination import Examination
from evocompress.pipeline.doctor.packages import Package

if TYPE_CHECKING:  # these import torch, which may be broken
    from evocompress.pipeline.doctor.computer import Computer
    from evocompress.pipeline.doctor.fits import Need

GIB = 2**30
BILLION = 1e9


def broken(found: Examination) -> Iterator[str]:
    """What is required and missing or broken, a line each."""
    for package in (found.python, *found.required):
        if package.obstacle:
            yield f"{package.obstacle}: {_remedy(package)}"
    yield from found.failed
    for disk in found.computer.disks[:1] if found.computer else ():
        if not disk.writable:
            yield (
                f"the cache folder {disk.folder} cannot be written: set EVOCOMPRESS_CACHE to "
                "another one"
            )


def _remedy(package: Package) -> str:
    """How to get a package that does."""
    if package.name == "Python":
        return "make an environment of another Python"
    again = "--force-reinstall " if package.failure else ""
    return f"pip install {again}'{package.name}{package.wanted}'"


def limits(found: Examination) -> Iterator[str]:
    """What will not work here, and why, a sentence each."""
    if found.computer is None:
        return
    yield from _devices(found.computer)
    yield from _dtypes(found.computer)
    yield from _sizes(found.computer, found.needs)
    for disk in found.computer.disks[1:]:
        if not disk.writable:
            yield f"Runs cannot be kept in {disk.folder}, which is read-only: give runs=FOLDER."
    for feature in found.features:
        if not feature.works:
            yield (f"No {feature.name} ({feature.purpose}): {feature.obstacle}: {feature.remedy}.")


def _devices(here: Computer) -> Iterator[str]:
    """Why no GPU is used."""
    if here.gpus:
        return
    if here.driver and here.cuda is None:
        yield (
            "The GPU is not used: this torch is a build for the CPU. Install the one for CUDA, "
            "see https://pytorch.org/get-started/locally/"
        )
    elif here.driver:
        yield f"The GPU is not used: torch, built for CUDA {here.cuda}, finds none that it can use."
    else:
        yield "No GPU: everything is computed on the processor."


def _dtypes(here: Computer) -> Iterator[str]:
    """What a processor is slow in."""
    if here.slow:
        kinds = " or ".join(here.slow)
        yield (
            f"{kinds} is much slower than float32 on the processor (torch uses {here.kernels}): "
            "models that are stored so are computed in float32 there, in twice the memory."
        )


def _sizes(here: Computer, needs: Sequence[Need]) -> Iterator[str]:
    """Which models are too large for the memory, and for the disk."""
    if not needs:
        return
    free = here.gpus[0].free if here.gpus else here.free_memory
    place = f"the {free / GIB:.1f} GiB that are free of {'GPU' if here.gpus else 'main'} memory"
    bounds = {
        "Searching": [need for need in needs if need.search > free],
        "Healing all weights of": [need for need in needs if need.heal > free],
    }
    for what, too_large in bounds.items():
        if too_large:
            least, fitting = too_large[0], len(needs) - len(too_large)
            bytes_ = least.search if what == "Searching" else least.heal
            largest = (
                f"{_named(needs[fitting - 1])} fits" if fitting else "no smaller one was tried"
            )
            yield (
                f"{what} a model of the size of {_named(least)} takes {bytes_ / GIB:.1f} GiB in "
                f"{least.dtype}, more than {place}; {largest}."
            )
    yield from _disk(here, needs, bounds["Searching"])
    if any(bounds.values()):
        yield "For your model `evocompress plan` says what it needs, and what makes it fit."


def _disk(here: Computer, needs: Sequence[Need], too_large: Sequence[Need]) -> Iterator[str]:
    """Which of the models that fit into memory are too large for the current folder's disk."""
    disk = here.disks[-1]
    for need in needs[: len(needs) - len(too_large)]:
        if need.disk > disk.free:
            yield (
                f"A run on a model of the size of {_named(need)} writes {need.disk / GIB:.1f} GiB, "
                f"more than the {disk.free / GIB:.1f} GiB that are free in {disk.folder}."
            )
            return


def _named(need: Need) -> str:
    return f"{need.model} ({need.parameters / BILLION:.2g} billion parameters)"
