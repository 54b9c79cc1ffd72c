"""The configuration of a search space: what may be compressed, and within which budget."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    ByteSize,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from evocompress.core.fields import Globs, Number, Positive, Size, Strict, Whole
from evocompress.core.precision_config import BitsSpace, CacheSpace
from evocompress.core.storage import GGUF, GROUPS, Lane

FITTING: dict[Lane, tuple[str, ...]] = {
    GGUF: ("gguf", "llama.cpp"),
    GROUPS: ("compressed-tensors", "compressed-tensors-vllm", "vllm"),
}
"""The formats and programs that hold each lane's types."""


class SparsitySpace(Strict):
    """Sparsity levels of matrices: target ± k·step zeros, k = 0..levels (EvoPress, 2410.14649).

    Attributes:
        match: Globs over names of matrix units.
        target: Fraction of zeros at level 0, from a thousandth to all but a thousandth.
        step: Weights between two levels, the same count for every matrix, so that a swap
            keeps the total; ``auto`` is half of min(target, 1 - target) / levels of the
            smallest square matrix of the model's width.
        levels: How many levels up and down.
        pattern: ``"N:M"`` for semi-structured zeros; then the only level is the target.

    Examples:
        >>> SparsitySpace(target=0.5).levels
        6
    """

    match: Annotated[Globs, Field(min_length=1)] = ("*",)
    target: Annotated[Number, Field(ge=0.001, le=0.999)]
    step: Positive | Literal["auto"] = "auto"
    levels: Annotated[Whole, Field(ge=0, le=100)] = 6
    pattern: str = ""

    @model_validator(mode="after")
    def _pattern_makes_the_target(self) -> SparsitySpace:
        if not self.pattern:
            return self
        found = re.fullmatch(r"([0-9]{1,3}):([0-9]{1,3})", self.pattern)
        zeros, group = map(int, found.groups()) if found else (0, 0)
        if not 0 < zeros < group:
            raise ValueError(f"pattern '{self.pattern}' must look like 2:4, N zeros in each M > N")
        if abs(zeros / group - self.target) > 1e-9:
            raise ValueError(
                f"pattern '{self.pattern}' makes N zeros in each M inputs, so target must be "
                f"{zeros / group:g}; it is {self.target:g}"
            )
        return self


class DropSpace(Strict):
    """Which sub-layers or blocks may be removed.

    Attributes:
        units: ``[attention, mlp]``, one of them, or ``[block]``; of a mixture of experts also
            ``expert``, alone or beside them.
        protect: Globs over names of units that are never removed; by default the first
            attention, which several programs cannot do without, and so with ``[block]`` the
            first block.
        merge: Removed blocks are merged into the last kept block before them (LaCo,
            2402.11187); only with ``[block]``.

    Examples:
        >>> DropSpace(units=["block"]).merge
        False
    """

    units: tuple[Literal["attention", "mlp", "block", "expert"], ...] = ("attention", "mlp")
    protect: Globs | None = None
    merge: bool = False

    @field_validator("units")
    @classmethod
    def _not_mixed(cls, units: tuple[str, ...]) -> tuple[str, ...]:
        if not units or ("block" in units and set(units) & {"attention", "mlp"}):
            raise ValueError("give [block], or one or both of [attention, mlp]")
        return units

    @model_validator(mode="after")
    def _merges_blocks(self) -> DropSpace:
        if self.merge and self.units != ("block",):
            raise ValueError("merge needs units: [block]")
        return self


WidthValue = Annotated[Number, Field(gt=0, le=10**7)]
WidthValues = Annotated[tuple[WidthValue, ...], Field(min_length=1, max_length=1000)]


class WidthSpace(Strict):
    """Which widths the sub-layers may have; a width of at most 1 is a fraction, else a count.

    Beside counts above 1, a 1 is a count as well: ``kv_groups: [1, 2]``.

    Attributes:
        units: ``[attention, mlp]`` or one of them.
        channels: FFN channels kept, rounded up to a multiple of `multiple_of`.
        kv_groups: Key-value heads kept; ``all`` is every number of them.
        group_heads: Query heads kept in each kept group; ``all`` is every number of them.
        multiple_of: Of the number of channels; hardware likes 32, 64 or 256.
        uniform: Every layer has the same width, so that the result loads in stock classes.
        protect: Globs over names of units that keep their width; by default the first
            attention, or nothing where `uniform` and where it is the only one.

    Examples:
        >>> WidthSpace(multiple_of=64).channels
        (0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125)
    """

    units: Annotated[tuple[Literal["attention", "mlp"], ...], Field(min_length=1)] = (
        "attention",
        "mlp",
    )
    channels: WidthValues = (0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125)
    kv_groups: WidthValues | Literal["all"] = "all"
    group_heads: WidthValues | Literal["all"] = "all"
    multiple_of: Positive = 32
    uniform: bool = False
    protect: Globs | None = None

    @model_validator(mode="after")
    def _uniform_protects_nothing(self) -> WidthSpace:
        if self.uniform and self.protect:
            raise ValueError("uniform ties all layers, so protect must be empty")
        return self


Engine = Literal["llama.cpp", "transformers"]
"""A program whose memory can be told."""

SIZES = ("weight_bytes", "file_bytes", "kv_bytes", "memory")
"""The costs in bytes, whose bounds may have a unit."""


def _in_bytes(name: str, bound: Any) -> Any:
    """A bound of a cost, one such as ``2GiB`` in bytes."""
    if not isinstance(bound, str) or re.fullmatch(r"[\d._eE+-]+", bound.strip()):
        return bound
    if name not in SIZES:
        raise ValueError(f"{name} is no size in bytes: '{bound}' must be a number")
    try:
        size = int(_SIZE.validate_python(bound)) if _WITH_UNIT.fullmatch(bound) else 0
    except ValidationError:
        size = 0
    if size <= 1:  # which would be a fraction
        raise ValueError(
            f"{name}: '{bound}' is no size: give bytes, a fraction, or a unit as in 2GiB or 500MB"
        )
    return size


_SIZE = TypeAdapter(ByteSize)

_WITH_UNIT = re.compile(r"\s*\d+(\.\d+)?\s*[a-zA-Z]+\s*")


class MemoryConfig(Strict):
    """How the model is to be served, for the cost ``memory``.

    Attributes:
        context: Tokens of each sequence, those that are generated among them.
        batch: Sequences at a time.
        engine: ``llama.cpp`` or ``transformers``; ``auto`` is llama.cpp where `SpaceConfig.fits`
            names it or its format, or where `SpaceConfig.bits` has its types.
        cache: Type of llama.cpp's keys and values, as of ``--cache-type-k`` and ``--cache-type-v``;
            in transformers they have the model's own.

    Examples:
        >>> MemoryConfig(context=4096).batch
        1
    """

    context: Positive
    batch: Size = 1
    engine: Engine | Literal["auto"] = "auto"
    cache: Literal["f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"] = "f16"


class SpaceConfig(Strict):
    """What may be compressed and within which budget.

    Attributes:
        sparsity: Zeros in matrices.
        width: Narrower attention and FFN.
        drop: Removed sub-layers or blocks.
        bits: Coarser types of stored weights.
        cache: Coarser types of cached keys and values.
        budget: Upper bounds {cost name: bound}; a bound of at most 1 is always a fraction of
            the dense model, a larger one is absolute: a latency of under a second is given as
            a fraction. Bytes may have a unit: ``2GiB``. See `evocompress.space.costs.COSTS`.
        memory: How the model is served; adds the cost ``memory``.
        fits: A checkpoint format, a key of `evocompress.export.FORMATS`, or a program, a key of
            `evocompress.export.PROGRAMS`, that every candidate must be written in or loaded by.

    Examples:
        >>> SpaceConfig(drop={}, budget={"body_params": 0.7}).budget
        {'body_params': 0.7}
    """

    sparsity: SparsitySpace | None = None
    width: WidthSpace | None = None
    drop: DropSpace | None = None
    bits: BitsSpace | None = None
    cache: CacheSpace | None = None
    budget: dict[str, Annotated[Number, Field(gt=0, le=1e18)]] = {}
    memory: MemoryConfig | None = None
    fits: str | None = None

    @property
    def engine(self) -> Engine:
        """The program whose memory counts."""
        named = self.memory.engine if self.memory else "auto"
        if named != "auto":
            return named
        stored = self.bits is not None and self.bits.lane == GGUF
        stored |= self.cache is not None and self.cache.shared
        return "llama.cpp" if stored or self.fits in FITTING[GGUF] else "transformers"

    @field_validator("budget", mode="before")
    @classmethod
    def _sizes(cls, budget: Any) -> Any:
        if not isinstance(budget, dict):
            return budget
        return {name: _in_bytes(name, bound) for name, bound in budget.items()}

    @model_validator(mode="after")
    def _served_by_an_engine(self) -> SpaceConfig:
        if self.memory is None:
            return self
        if self.fits == "vllm" and self.memory.engine == "auto":
            raise ValueError("memory tells nothing of vllm: give memory.engine, or leave it out")
        if self.engine == "transformers" and self.memory.cache != "f16":
            raise ValueError(
                "memory.cache is a setting of llama.cpp, and memory is that of transformers: leave "
                "it out, or give memory.engine=llama.cpp"
            )
        others = [name for lane, names in FITTING.items() if lane != GGUF for name in names]
        if self.engine == "llama.cpp" and self.fits in others:
            raise ValueError(f"memory.engine=llama.cpp loads nothing that fits {self.fits}")
        return self

    @model_validator(mode="after")
    def _memory_of_something(self) -> SpaceConfig:
        if "memory" in self.budget and self.memory is None:
            raise ValueError(
                "budget.memory is told at a context: give space.memory={context: 4096}"
            )
        return self

    @model_validator(mode="after")
    def _caches_as_it_stores(self) -> SpaceConfig:
        """Refuses caches that no program has beside these weights, or that are told twice."""
        if self.cache is None:
            return self
        if self.bits is not None and self.cache.shared != (self.bits.lane == GGUF):
            raise ValueError(
                f"cache: '{self.cache.types[-1]}' and the weights' '{self.bits.types[-1]}' are not "
                "of one program: give both of llama.cpp's types, or neither"
            )
        if self.memory is not None and self.memory.cache != "f16":
            raise ValueError("memory.cache is what space.cache searches: leave one of them out")
        if "memory" in self.budget and not self.cache.shared:
            raise ValueError(
                "budget.memory is that of programs, none of which has caches of types such as "
                f"'{self.cache.types[-1]}': bound kv_bytes, or give llama.cpp's types"
            )
        return self

    @model_validator(mode="after")
    def _fits_the_lane(self) -> SpaceConfig:
        """Refuses a format that would hold the types as weights of the model's own."""
        if self.bits is None or self.fits is None:
            return self
        lane = self.bits.lane
        if self.fits not in FITTING[lane]:
            raise ValueError(
                f"fits: {self.fits} does not hold the types of space.bits as such; give "
                f"{' or '.join(FITTING[lane])}, or leave fits out"
            )
        return self
