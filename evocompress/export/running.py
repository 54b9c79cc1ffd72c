"""How a program runs what a format writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Running:
    """How a program runs a format.

    Attributes:
        how: In words.
        families: Model types that it was tried with; empty where that makes no difference, because
            the program runs the dense model by the same code.
        on_request: Taken only when asked for by name.
        typed: Taken first where matrices have types that the format holds as such.
    """

    how: str
    families: tuple[str, ...] = ()
    on_request: bool = False
    typed: bool = False


OWN_CLASS = "the model's own class"
MODELING_FILE = "the classes of evocompress.hf, or of the modeling file with trust_remote_code"

Programs = Mapping[str, Running]
"""How each program that loads a format runs it, by its name in `PROGRAMS`."""
