"""NSGA-II (Deb et al. 2002): a whole front of quality against costs in one search."""

from __future__ import annotations

from typing import ClassVar

from evocompress.search.evolution.evolved_front import EvolvedFront


class NSGA2(EvolvedFront):
    """Survivors by layers of the front, and within the last layer by crowding."""

    algorithm: ClassVar[str] = "nsga2"
