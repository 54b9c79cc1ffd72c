"""What a mixer of tokens takes beside its matrices."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Beside:
    """What a sub-layer that mixes tokens takes beside its matrices: operations, and a cache.

    Attributes:
        once: Operations of a sequence of whatever length.
        token: Of each of its tokens.
        size: Tokens that are computed together, as a chunk.
        chunk: Operations of each chunk; one that is not full is filled up.
        squared: Of the square of the number of chunks.
        pair: Of each query and a key that it may see.
        within: Of each two tokens of one chunk; the last chunk is not filled up for that.
        decoded: Of a token that is decoded with a cache, but for `seen`.
        seen: Then of each key that it may see.
        state: Numbers that are kept of a sequence of any length, in the precision of the weights.
        state_bytes: What is kept of it in a precision of its own.
        kept: Numbers that are kept of each token, in the precision of the weights.
        kept_bytes: What is kept of it in a precision of its own.

    Examples:
        >>> Beside(once=6, token=2, size=64, chunk=100).prefill(65)
        336
    """

    once: int = 0
    token: int = 0
    size: int = 1
    chunk: int = 0
    squared: int = 0
    pair: int = 0
    decoded: int = 0
    seen: int = 0
    state: int = 0
    state_bytes: int = 0
    kept: int = 0
    kept_bytes: int = 0
    within: int = 0

    def plus(self, other: Beside, sign: int = 1) -> Beside:
        """What it takes with something beside it, that computes no tokens together; or without."""
        every = {name: value + sign * getattr(other, name) for name, value in vars(self).items()}
        return Beside(**(every | {"size": self.size}))

    def prefill(self, length: int) -> int:
        """Operations of a sequence, but for those of pairs."""
        chunks = -(-length // self.size)
        full, rest = divmod(length, self.size)
        within = self.within * (full * self.size**2 + rest**2)
        own = self.once + self.token * length + within
        return own + self.chunk * chunks + self.squared * chunks**2

    def cached(self, seen: int, itemsize: float, of_state: float | None = None) -> float:
        """Bytes that are kept where `seen` tokens can be seen, in numbers of `itemsize` bytes.

        Those of a state may have another size.
        """
        own = self.state_bytes + self.kept_bytes * seen
        state = self.state * (itemsize if of_state is None else of_state)
        return own + state + itemsize * self.kept * seen
