"""How a matrix can be stored: which types there are, what they take, and which rows they fit.

Two lanes, which are not mixed in one model: `GGUF` has llama.cpp's types, and `GROUPS` integers
with a scale for every few inputs, as compressed-tensors stores them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import inf
from typing import Literal

from evocompress.core.errors import ConfigError

Lane = Literal["gguf", "groups", "cache"]

GGUF: Lane = "gguf"
GROUPS: Lane = "groups"
CACHE: Lane = "cache"
"""Of keys and values in torch."""

Ranges = Literal["signed", "affine", "zero point", "codebook"]
"""What the numbers of a block stand for.

``signed``: multiples of a scale; ``affine``: those beside a minimum of the block; ``zero point``:
multiples of a scale from a whole number of them on; ``codebook``: no grid of equal steps.
"""

WORD = 32
"""Bits of a word into which compressed-tensors packs integers, one after the other."""

SCALE_BYTES = 2
"""Of a group's scale."""

GROUP_SIZES = (32, 64, 128)


@dataclass(frozen=True)
class StorageType:
    """A way to store the rows of a matrix.

    Attributes:
        name: Its name in levels and run files.
        lane: Whose it is.
        block: Inputs that are stored together; a row must have a multiple of it. 0 where they are
            all inputs of a row, whatever their number.
        block_bytes: What a block takes; in lane `GROUPS` without its integers, which are packed
            over the whole row.
        bits: Of the integer that a weight becomes; 0 where it becomes none.
        ranges: What these integers stand for.
        rounds_inputs: What the matrix reads is rounded to 8 bits as well, for each token by its
            largest value, while the model runs; integers have a byte each.

    Examples:
        >>> STORAGE["q4_0"].bytes(4, 64)
        144
    """

    name: str
    lane: Lane
    block: int
    block_bytes: int
    bits: int = 0
    ranges: Ranges = "codebook"
    rounds_inputs: bool = False

    @property
    def uniform(self) -> bool:
        """Whether a block's values have equal steps, to which any weight can be rounded alone."""
        return self.ranges != "codebook"

    @property
    def has_zero(self) -> bool:
        """Whether a weight that is zero stays exactly zero."""
        return self.ranges in ("signed", "zero point") or self.name in HALVES

    def fits(self, columns: int) -> bool:
        """Whether rows of a length can be cut into blocks."""
        return not self.block or columns % self.block == 0

    def bytes(self, rows: int, columns: int) -> int:
        """Of a matrix (rows, columns), where the type fits.

        Zero points of groups are packed over the rows, as compressed-tensors does.
        """
        blocks = columns // (self.block or columns)
        own = rows * blocks * self.block_bytes
        if self.lane == GROUPS:
            own += rows * (columns if self.rounds_inputs else _words(columns, self.bits))
        if self.ranges == "zero point":
            own += blocks * _words(rows, self.bits)
        return own

    @property
    def bits_per_weight(self) -> float:
        """Of large matrices, with scales and zero points."""
        if not self.block:
            return float(self.bits)
        size = WORD * self.block  # whose integers fill whole words
        return 8 * self.bytes(size, size) / size**2


def _words(count: int, bits: int) -> int:
    """Bytes of so many integers in words."""
    return -(-count * bits // WORD) * WORD // 8


HALVES = {"f16": 2, "bf16": 2}
"""Types without blocks, with their bytes."""

_BLOCKS_OF_32: dict[str, tuple[int, int, Ranges]] = {
    "q4_0": (18, 4, "signed"),
    "q4_1": (20, 4, "affine"),
    "q5_0": (22, 5, "signed"),
    "q5_1": (24, 5, "affine"),
    "q8_0": (34, 8, "signed"),
    "iq4_nl": (18, 0, "codebook"),
    "mxfp4": (17, 0, "codebook"),
}

_BLOCKS_OF_256 = {
    "iq1_s": 50,
    "iq1_m": 56,
    "iq2_xxs": 66,
    "iq2_xs": 74,
    "iq2_s": 82,
    "q2_k": 84,
    "iq3_xxs": 98,
    "iq3_s": 110,
    "q3_k": 110,
    "iq4_xs": 136,
    "q4_k": 144,
    "q5_k": 176,
    "q6_k": 210,
}


def _types() -> Iterator[StorageType]:
    for name, size in HALVES.items():
        yield StorageType(name, GGUF, 1, size)
    for name, (size, bits, ranges) in _BLOCKS_OF_32.items():
        yield StorageType(name, GGUF, 32, size, bits, ranges)
    for name, size in _BLOCKS_OF_256.items():
        yield StorageType(name, GGUF, 256, size)
    for bits, group in product(range(2, 9), GROUP_SIZES):
        name = f"w{bits}g{group}"
        yield StorageType(name, GROUPS, group, SCALE_BYTES, bits, "signed")
        yield StorageType(f"{name}z", GROUPS, group, SCALE_BYTES, bits, "zero point")
    yield StorageType("w8a8", GROUPS, 0, SCALE_BYTES, 8, "signed", rounds_inputs=True)


STORAGE: dict[str, StorageType] = {one.name: one for one in _types()}
"""All types by name."""


CACHES: dict[str, StorageType] = {
    name: STORAGE[name] for name in ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
} | {
    f"kv{bits}": StorageType(f"kv{bits}", CACHE, 32, 2 * SCALE_BYTES + 4 * bits, bits, "affine")
    for bits in (8, 6, 4, 3, 2)
}
"""Types of cached keys and values: llama.cpp's with equal steps, and those of torch by KIVI (Liu et
al. 2024, 2402.02750): a scale and a minimum for each 32 tokens of a channel of the keys, and for
each 32 channels of a token of the values."""


def stored_bits(name: str) -> float:
    """Bits of a weight of a type; of the model's own, the empty name, more than all others take."""
    return (CACHES.get(name) or storage_type(name)).bits_per_weight if name else inf


def rounds_inputs(name: str) -> bool:
    """Whether a type rounds what a matrix reads; the model's own, the empty name, does not."""
    return bool(name) and storage_type(name).rounds_inputs


def storage_type(name: str) -> StorageType:
    """The type of a name.

    Raises:
        ConfigError: There is none.
    """
    if name not in STORAGE:
        listed = ", ".join(one for one in STORAGE if not re.match(r"w\d", one))
        raise ConfigError(
            f"there is no type of weights {name!r}: choose among {listed}, w8a8, or w4g64 and its "
            "like: 2 to 8 bits in groups of 32, 64 or 128, with a z for a zero point"
        )
    return STORAGE[name]
