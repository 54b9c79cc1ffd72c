"""The memory that a program takes to serve a model: weights, cache, and its own buffers.

Counted is what is resident at most while tokens are generated at the end of a full context, on a
CPU, above what the process takes before it loads the model: interpreter and libraries are the same
for every candidate.

llama.cpp maps the file, whose pages are all touched. It makes the cache whole at the start, each
sequence's in steps of 256 tokens; that of a windowed layer holds the window and a micro-batch
(``llama-kv-cache-iswa.cpp``, without ``--swa-full``). Activations are float32, of micro-batches of
512 tokens, and flash attention, its default, keeps no scores. transformers runs a prompt at once;
what it frees is given back to the system, for which glibc must be told so (see
`evocompress.testing.engines.resident_memory`): by default it keeps some of it, at every run another
part.

Layers use buffers one after the other, so those of the widest layer of the dense model count, which
no candidate saves: costs are sums over sub-layers. Their sizes were fitted to what was measured;
``python benchmarks/memory.py`` compares the whole with the real programs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evocompress.core.architecture import Architecture
from evocompress.core.errors import ConfigError
from evocompress.core.space_config import Engine
from evocompress.core.storage import HALVES, StorageType, storage_type
from evocompress.space.costs.counted import cached_bytes, saved_in_cache
from evocompress.space.costs.model import Cost
from evocompress.space.costs.sublayers import Left, Part

CELLS = 256
"""llama.cpp makes caches in steps of so many tokens."""

MICRO_BATCH = 512
"""Tokens that llama.cpp computes at a time, by default."""

STATE_BYTES = 4
"""Of each number of a state that llama.cpp keeps in place of keys and values: float32."""

LOGIT_BYTES = 4


@dataclass(frozen=True)
class Buffers:
    """What a program takes beside weights and cache, as fitted to resident sizes.

    They were those of decoders in bfloat16: 512 to 1,536 wide, with 512 to 4,096 channels, at 256
    to 1,024 tokens, and SmolLM2-135M at up to 4,096.

    Attributes:
        channels: Activations as wide as the FFN that are there at a time, one of llama.cpp's in
            bfloat16.
        hidden: Activations as wide as the residual stream.
        word: Bytes of each entry of the vocabulary, which llama.cpp keeps with pairs to merge.
        own: Bytes of the rest; of transformers it was 14 MiB where all layers are alike, and 31
            where no two are, presumably for kernels that torch keeps for every shape.

    Examples:
        >>> BUFFERS["transformers"].word
        0
    """

    channels: float
    hidden: float
    word: int
    own: int


BUFFERS: dict[Engine, Buffers] = {
    "llama.cpp": Buffers(channels=3.5, hidden=2, word=340, own=3 * 2**19),
    "transformers": Buffers(channels=3, hidden=4, word=0, own=22 * 2**20),
}


@dataclass(frozen=True)
class Serving:
    """How a model is served.

    Attributes:
        engine: The program.
        context: Tokens of each sequence.
        batch: Sequences at a time.
        cache: llama.cpp's type of keys and values; in transformers they have the model's own.
        typed: Whether the program holds matrices in the types of the space.

    Examples:
        >>> Serving("llama.cpp", context=300).cells(None)
        512
    """

    engine: Engine
    context: int
    batch: int = 1
    cache: str = "f16"
    typed: bool = False

    def cells(self, window: int | None) -> int:
        """Tokens of a sequence that a layer's cache has room for."""
        if self.engine == "transformers":
            return min(self.context, window or self.context)
        most = _padded(self.context)
        return most if window is None else _padded(min(most, window + self._together))

    def activations(self, itemsize: int) -> tuple[int, int]:
        """Tokens that are computed at a time, and bytes of each activation."""
        if self.engine == "transformers":
            return self.context * self.batch, itemsize
        return self._together, 4

    @property
    def _together(self) -> int:
        return min(MICRO_BATCH, self.context * self.batch)


def _padded(tokens: int) -> int:
    return -(-tokens // CELLS) * CELLS


def check_serving(serving: Serving, architecture: Architecture) -> None:
    """Refuse to tell the memory of a model that is not served so.

    Raises:
        ConfigError: It has no cache, a shorter context, or heads that do not fit the cache's type.
    """
    if not architecture.causal:
        raise ConfigError(
            "space.memory: this model has no key-value cache and generates nothing; leave it out "
            "and bound weight_bytes"
        )
    if architecture.shared:
        raise ConfigError(
            "space.memory: several blocks of this model share matrices, whose weights count once "
            "and their caches each time; bound weight_bytes and kv_bytes"
        )
    if not 1 <= serving.context <= architecture.context:
        raise ConfigError(
            f"space.memory.context {serving.context}: give 1 to {architecture.context} tokens, the "
            "model's context"
        )
    block = storage_type(serving.cache).block
    if wrong := next(
        (n for n in architecture.head_dims or (architecture.head_dim,) if n % block), 0
    ):
        raise ConfigError(
            f"space.memory.cache: '{serving.cache}' has blocks of {block} values, into which heads "
            f"of {wrong} cannot be cut; give {' or '.join(HALVES)}"
        )


def memory_cost(
    weights: Cost, parts: Sequence[Part], architecture: Architecture, serving: Serving
) -> Cost:
    """The memory of a served model.

    Args:
        weights: The cost of the bytes of its weights.
        parts: Its sub-layers.
        architecture: Its dimensions.
        serving: How it is served.

    Returns:
        The bytes of weights, of a full cache of all sequences, and of the program's buffers.

    Raises:
        ConfigError: It is not served so.
    """
    check_serving(serving, architecture)
    llama = serving.engine == "llama.cpp"
    size = storage_type(serving.cache).bits_per_weight / 8 if llama else architecture.dtype_bytes
    state = STATE_BYTES if llama else architecture.dtype_bytes

    def amount(part: Part, left: Left) -> float:
        cached = cached_bytes(part, left, serving.cells(part.window), size, state)
        return weights.amount(part, left) + serving.batch * cached

    return Cost(
        weights.base + buffer_bytes(parts, architecture, serving),
        amount,
        per_byte=weights.per_byte * serving.typed,
        per_outer_byte=weights.per_outer_byte * serving.typed,
        per_served_byte=llama,
    )


def saved_in_service(part: Part, left: Left, kind: StorageType, serving: Serving) -> int:
    """Bytes that a type of llama.cpp saves of the cache of a served model."""
    tokens = serving.batch * serving.cells(part.window)
    return saved_in_cache(part, left, kind, tokens, storage_type(serving.cache).bits_per_weight / 8)


def buffer_bytes(parts: Sequence[Part], architecture: Architecture, serving: Serving) -> float:
    """The bytes that a program takes beside weights and cache, of the dense model."""
    own = BUFFERS[serving.engine]
    tokens, itemsize = serving.activations(architecture.dtype_bytes)
    channels = max((part.channels for part in parts), default=0) * max(
        1, architecture.active_experts
    )
    numbers = own.channels * channels + own.hidden * architecture.hidden
    found = tokens * itemsize * numbers + own.own
    logits = LOGIT_BYTES * architecture.vocabulary * serving.batch
    if serving.engine == "llama.cpp":
        found += HALVES["f16"] * tokens * serving.cells(None)  # which keys each query sees
        logits *= 2  # in the graph, and copied for who asks
    return found + own.word * architecture.vocabulary + logits
