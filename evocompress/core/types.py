"""The words of the program as frozen data: units, levels, candidates.

Standard library only: every other module may import this one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from itertools import starmap
from operator import lt
from typing import Any, Literal, cast

UnitKind = Literal["block", "attention", "mlp", "expert", "matrix", "cache", "outer"]

Axis = Literal["query", "key", "value", "grouped", "channel", "inner", "shared"]
"""What the rows or columns of a matrix belong to: heads of queries, keys or values, or channels.

``grouped`` rows are those of one key-value head after the other: its queries, its key, its value.
Where a branch has channels twice, one after the other, ``inner`` are the first of them; there are
as many as of the others. ``shared`` are the channels of an expert that every token passes, beside
those that it is sent to: no level changes their number.
"""


@dataclass(frozen=True)
class Unit:
    """A part of the model that is compressed on its own.

    Attributes:
        name: Unique name. For a block, an expert or a matrix its module path in the model, e.g.
            ``model.layers.3.mlp.down_proj``; for a sub-layer ``{block}.attention`` or
            ``{block}.mlp``, whatever the family calls its modules.
        kind: ``block``, ``attention``, ``mlp``, ``expert`` (of an MLP that is a mixture of them)
            or ``matrix``; the keys and values that an attention caches are ``cache``, the input
            embedding and the head ``outer``.
        parent: Name of the enclosing unit; ``None`` for a block, and outside of the blocks.
        block: Index of the block, from 0; of the embedding the first, of the head the last.
        role: Name of the part within its block, e.g. ``q_proj``; same in every block.
        shape: (out, in) of a matrix, whatever order the module stores; ``None`` otherwise.
        rows: What the outputs of a matrix are, one part after the other: ``("query", "key",
            "value")`` of a fused projection. Empty where they are the residual stream.
        columns: The same of its inputs.
        bias: Whether the matrix has a bias.
        active: Of an MLP that is a mixture of experts, how many of them each token uses, and so
            the fewest that it can have; 0 otherwise.
        groups: Of such an MLP, how many groups of one size its router had before any were dropped.
        chosen_groups: From how many of them the experts of a token are.
        group: Of an expert the one that it is in, from 0.
        positions: How often the matrix is applied to a sequence, where that is not once a token: a
            convolution, whose matrix is (out, in times kernel), is at each place of an image.
        patch: Columns of a channel: 1, or what the kernel of a convolution reads of it.
        of_cache: For each new token the matrix makes keys and values anew of all that is cached.
        droppable: Whether the unit can be left out at all.
        narrowable: Whether the width of a sub-layer can be cut at all.
        attends: Whether an attention's keys and values are cached; a model must keep one such.
        shares: Of an attention, and of each matrix that several run, the block with the latter.

    Examples:
        >>> Unit("layers.0.mlp.up", "matrix", "layers.0.mlp", 0, "up", shape=(8, 4)).numel
        32
    """

    name: str
    kind: UnitKind
    parent: str | None
    block: int
    role: str
    shape: tuple[int, int] | None = None
    rows: tuple[Axis, ...] = ()
    columns: tuple[Axis, ...] = ()
    bias: bool = False
    active: int = 0
    positions: int | None = None
    patch: int = 1
    of_cache: bool = False
    droppable: bool = True
    narrowable: bool = True
    attends: bool = True
    groups: int = 1
    chosen_groups: int = 1
    group: int = 0
    shares: str = ""

    @property
    def least(self) -> int:
        """The fewest experts that each group of an MLP that is a mixture of them can have.

        Routers rank groups by the sum of their two best experts.
        """
        each = -(-self.active // self.chosen_groups)
        return each if self.groups == 1 else max(2, each)

    @property
    def owner(self) -> str:
        """Name of the enclosing unit; empty for a block."""
        return self.parent or ""

    @property
    def numel(self) -> int:
        """Number of weights of a matrix; 0 for other kinds."""
        return self.shape[0] * self.shape[1] if self.shape else 0


@dataclass(frozen=True)
class Level:
    """One entry of a unit's ordered list of ways to compress it.

    Attributes:
        zeros: Number of weights set to zero (matrix units), counted in the matrix at its full
            width; in a narrowed sub-layer in proportion to the weights that are left.
        pattern: ``""`` for unstructured zeros, or ``"N:M"`` (N zeros in each M inputs).
        bits: How the matrix is stored, after its zeros and in its narrowed sub-layer: a name from
            `evocompress.core.storage.STORAGE`; ``""`` as in the model.
        cache: How keys and values are cached (cache units): a name from
            `evocompress.core.storage.CACHES`; ``""`` as in the model.
        drop: The unit is removed. Excludes the other fields.
        kv_groups: Key-value heads kept, each with its query heads (attention units); ``None``
            where the width is not changed.
        group_heads: Query heads kept in each kept group; given exactly where `kv_groups` is.
        channels: FFN channels kept (MLP units); ``None`` where the width is not changed.
        bias: The output of the narrowed sub-layer needs a bias that stands in for the mean of
            what was cut (FLAP).
        merge: The next blocks, as many, are merged into this one and must be dropped (block
            units, LaCo).

    Examples:
        >>> Level(zeros=16).key, Level(channels=512).key, Level().key
        ('zeros=16', 'channels=512', 'dense')
    """

    zeros: int = 0
    pattern: str = ""
    drop: bool = False
    kv_groups: int | None = None
    group_heads: int | None = None
    channels: int | None = None
    bias: bool = False
    merge: int = 0
    bits: str = ""
    cache: str = ""

    @property
    def type(self) -> str:
        """Of stored weights, or of cached keys and values; ``""`` as in the model."""
        return self.bits or self.cache

    @cached_property
    def dense(self) -> bool:
        """Whether the unit is left as it is."""
        return self == DENSE

    @property
    def narrow(self) -> bool:
        """Whether heads or channels are cut."""
        return self.kv_groups is not None or self.channels is not None

    @cached_property
    def key(self) -> str:
        """Short text naming the level in files, e.g. ``zeros=165888`` or ``channels=512``."""
        if self.drop:
            return "drop"
        if self.dense:
            return "dense"
        if self.narrow or self.merge:
            return ",".join(f"{name}={int(value)}" for name, value in self.to_json().items())
        zeros = f"zeros={self.zeros}" if self.zeros or self.pattern else ""
        return ",".join(filter(None, (zeros, self.pattern, self.type)))

    def zeros_left(self, whole: int, left: int) -> int:
        """Zeros in a matrix with `left` of its `whole` weights in a narrowed sub-layer."""
        if self.pattern:
            zeros, group = map(int, self.pattern.split(":"))
            return left * zeros // group
        return self.zeros * left // whole

    def to_json(self) -> dict[str, Any]:
        """The specification, without fields at their default."""
        return dict(self._specification)

    @cached_property
    def text(self) -> str:
        """The specification as JSON."""
        return json.dumps(self._specification, separators=(",", ":"))

    @cached_property
    def sorted_text(self) -> str:
        """The specification as JSON with its keys in alphabetical order."""
        return json.dumps(self._specification, sort_keys=True, separators=(",", ":"))

    @cached_property
    def _specification(self) -> dict[str, Any]:
        if self.dense:
            return {"zeros": 0}
        spec = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in spec.items() if value != getattr(DENSE, name)}

    @classmethod
    def from_json(cls, spec: Mapping[str, Any]) -> Level:
        """The inverse of `to_json`; unknown fields raise ``TypeError``."""
        return cls(**spec)


DENSE = Level()
DROP = Level(drop=True)

_quoted = lru_cache(maxsize=1 << 16)(json.dumps)
"""Names of units as JSON."""


class Entry(tuple[str, Level]):
    """What a candidate says of a unit: its name and level, with their texts, which are made once.

    Equal to the plain tuple, as which it is sent to other processes.

    Examples:
        >>> Entry("layers.3.mlp", DROP).text
        '"layers.3.mlp":{"drop":true}'
    """

    def __new__(cls, name: str, level: Level) -> Entry:
        """The entry of a unit."""
        return super().__new__(cls, (name, level))

    @cached_property
    def text(self) -> str:
        """As JSON."""
        return f"{_quoted(self[0])}:{self[1].text}"

    @cached_property
    def sorted_text(self) -> str:
        """As JSON with the keys of the level in alphabetical order."""
        return f"{_quoted(self[0])}:{self[1].sorted_text}"

    def __reduce__(self) -> Any:
        return tuple, (tuple(self),)


@dataclass(frozen=True)
class Candidate:
    """One level per unit, in canonical form; a unit that is not named is dense.

    Canonical: sorted by unit name, without dense levels, without what lies below
    dropped units, and a dropped block written as its two dropped sub-layers. Build one
    with `evocompress.core.canonical.canonical`; this class only checks the order.

    Examples:
        >>> Candidate.from_json({"layers.3.mlp": {"drop": True}}).by_name["layers.3.mlp"].key
        'drop'
    """

    levels: tuple[tuple[str, Level], ...] = ()

    def __post_init__(self) -> None:
        names = [name for name, _ in self.levels]
        if not all(map(lt, names, names[1:])):
            raise ValueError("levels of a candidate must be sorted by unit name, each once")
        if any([level.dense for _, level in self.levels]):
            raise ValueError("a candidate in canonical form names no dense unit")

    @classmethod
    def of(cls, entries: tuple[Entry, ...]) -> Candidate:
        """The candidate of entries in canonical form, which is not checked."""
        found = object.__new__(cls)
        object.__setattr__(found, "levels", entries)
        return found

    @cached_property
    def id(self) -> str:
        """Sixteen hex digits hashing {unit name: level specification}."""
        items = [entry.sorted_text for entry in self._entries]
        return hashlib.sha256(f"{{{','.join(items)}}}".encode()).hexdigest()[:16]

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def text(self) -> str:
        """`to_json` as text."""
        return f"{{{','.join([entry.text for entry in self._entries])}}}"

    @property
    def _entries(self) -> Iterable[Entry]:
        made = self.levels and isinstance(self.levels[0], Entry)
        return cast(Iterable[Entry], self.levels) if made else starmap(Entry, self.levels)

    @cached_property
    def by_name(self) -> dict[str, Level]:
        """The levels as a mapping from unit name."""
        return dict(self.levels)

    def to_json(self) -> dict[str, Any]:
        """{unit name: level specification}."""
        return {name: level.to_json() for name, level in self.levels}

    @classmethod
    def from_json(cls, data: Mapping[str, Mapping[str, Any]]) -> Candidate:
        """The inverse of `to_json`."""
        return cls(tuple(sorted((name, Level.from_json(spec)) for name, spec in data.items())))
