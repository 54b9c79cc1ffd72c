"""Remembers what was found of one genome until another one is asked about.

Repair asks the same of a genome again and again before it goes on to the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from evocompress.core.arrays import Genome

Self = TypeVar("Self")
Scalar = TypeVar("Scalar", bound=np.generic)
GenomeMethod = Callable[[Self, Genome], NDArray[Scalar]]


def latest(method: GenomeMethod[Self, Scalar]) -> GenomeMethod[Self, Scalar]:
    """Makes a method of genomes (N, U) remember its latest answer about a single one.

    The answer about a single one is read-only. It is kept in the object, as a
    `functools.cached_property` is.
    """
    name = f"_latest_{method.__name__}"

    @wraps(method)
    def remembering(self: Self, genomes: Genome) -> NDArray[Scalar]:
        if len(genomes) != 1:
            return method(self, genomes)
        own: dict[str, Any] = vars(self)
        content = genomes.tobytes()
        known = own.get(name)
        if known is None or known[0] != content:
            found = method(self, genomes)
            found.flags.writeable = False
            known = own[name] = (content, found)
        return known[1]

    return remembering
