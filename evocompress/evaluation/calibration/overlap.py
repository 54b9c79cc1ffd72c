"""Text that two sources have in common, found by what was read and not by names."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evocompress.core.arrays import Integers

LONGEST_RUN = 64
"""Tokens in a row that two texts have in common only if one was taken from the other.

The longest run that repeats within WikiText-2, or between its parts, has 35 of SmolLM2's tokens:
a row of a table.
"""

SHORTER_RUN = 16
"""Tokens in a row that tell of common text where they cover much of a sequence.

Runs of a quotation or a row of a table are as long; lines that were joined otherwise, longer.
"""

_BASE = 0x9E3779B97F4A7C15
_WORD = 2**64


@dataclass(frozen=True, eq=False)
class Seen:
    """What was read already.

    Attributes:
        run: Length of the runs of tokens that are looked for, a power of two.
        runs: Hashes of all such runs, sorted.
        sequences: The bytes of whole sequences, which may be shorter than a run.
    """

    run: int
    runs: NDArray[np.uint64]
    sequences: frozenset[bytes]

    def has(self, sequence: Tensor) -> bool:
        """Whether one of the sequences is the same, token by token."""
        return sequence.numpy().tobytes() in self.sequences

    def apart(self, stream: Tensor) -> list[Tensor]:
        """The stretches of a stream (N,) that are in no run seen before."""
        hashes = _hashes(stream.numpy(), self.run)
        places = np.searchsorted(self.runs, hashes).clip(max=len(self.runs) - 1)
        found = (self.runs[places] == hashes).nonzero()[0]
        steps = np.zeros(len(stream) + 1, dtype=np.int64)
        np.add.at(steps, found, 1)
        np.add.at(steps, found + self.run, -1)
        covered = steps.cumsum()[:-1] > 0
        turns = (np.flatnonzero(np.diff(covered)) + 1).tolist()
        parts = torch.tensor_split(stream, turns)
        starts = [0, *turns]
        return [
            part
            for part, at in zip(parts, starts, strict=True)
            if at < len(covered) and not covered[at]
        ]

    def count(self, sequences: Tensor) -> int:
        """Tokens of sequences (M, S), one after the other, that are in runs seen before."""
        stream = sequences.reshape(-1)
        return len(stream) - sum(map(len, self.apart(stream)))


def seen_in(sequences: Tensor, longest: int) -> Seen:
    """What sequences (N, S) of token ids, int64, one after the other, without special ones hold.

    Runs of `longest` are looked for; in shorter sequences they are as long as a power of two that a
    sequence has room for.
    """
    stream = sequences.reshape(-1).numpy()
    run = 1 << (min(longest, sequences.shape[1]).bit_length() - 1)
    return Seen(
        run=run,
        runs=np.unique(_hashes(stream, run)),
        sequences=frozenset(row.tobytes() for row in sequences.numpy()),
    )


def _hashes(stream: Integers, run: int) -> NDArray[np.uint64]:
    """The hash of the run that begins at each place: a polynomial in the tokens, modulo 2^64."""
    found = stream.astype(np.uint64) + np.uint64(1)
    length = 1
    while length < run:
        factor = np.uint64(pow(_BASE, length, _WORD))
        found = found[:-length] * factor + found[length:]
        length *= 2
    return found
