"""What llama.cpp's quantization mixes say of each matrix, as a table of roles.

The rules are those of ``llama_tensor_get_type`` in llama.cpp's ``src/llama-quant.cpp``. Left out
are mixes that llama.cpp makes only with an importance matrix (its IQ1, IQ2 and the smaller IQ3),
and what it does otherwise for Falcon.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from evocompress.core.canonical import MATRICES
from evocompress.core.errors import ConfigError
from evocompress.core.storage import storage_type
from evocompress.core.types import Unit
from evocompress.core.units import UnitTree

TensorRole = Literal["value", "key", "output", "down", "head", "other"]
"""What llama.cpp tells apart: values (also beside queries and keys in one matrix), keys, the last
matrix of an attention, the last one of an MLP or expert, the head, which the embedding may be as
well, and all others."""

MANY = 8
"""Experts of a mixture of Mixtral's size, for which some rules are others."""

DEEP = 80
"""Blocks of a model of 70 billion weights, which llama.cpp knows by them."""


@dataclass(frozen=True)
class MatrixPlace:
    """Where a matrix stands.

    Attributes:
        index: Of the matrix among those of its role; of its block for experts.
        count: How many of its role there are; of MLPs' matrices, how many blocks.
        queries: Query heads for each key-value head in the first block.
        experts: Of each mixture.
        imatrix: Whether the file is made with an importance matrix.
    """

    index: int
    count: int
    queries: int
    experts: int
    imatrix: bool

    @property
    def early(self) -> bool:
        """Whether it is in the first eighth."""
        return self.index < self.count // 8

    @property
    def favoured(self) -> bool:
        """Whether it is in the first or last eighth, or one of every three between."""
        eighth = self.count // 8
        late = self.index >= 7 * self.count // 8
        return self.early or late or (self.index - eighth) % 3 == 2


WHERE: Mapping[str, Callable[[MatrixPlace], bool]] = {
    "everywhere": lambda place: True,
    "first two": lambda place: place.index < 2,
    "first four": lambda place: place.index < 4,
    "first sixteenth": lambda place: place.index < place.count // 16,
    "first eighth": lambda place: place.early,
    "first eighth, importance": lambda place: place.early and place.imatrix,
    "first eighth, no importance": lambda place: place.early and not place.imatrix,
    "favoured": lambda place: place.favoured,
    "favoured, eight experts": lambda place: place.favoured and place.experts == MANY,
    "eight experts": lambda place: place.experts == MANY,
    "not eight experts": lambda place: place.experts != MANY,
    "grouped heads": lambda place: place.queries >= 4,
}

Rule = tuple[TensorRole, str, str]
"""Of which role, where (a key of `WHERE`), and the type."""

_EIGHT: Rule = ("output", "eight experts", "q5_k")
_FAVOURED: tuple[Rule, ...] = (("value", "favoured", "q6_k"), ("down", "favoured", "q6_k"))
_IQ4: tuple[Rule, ...] = (
    ("value", "grouped heads", "q5_k"),
    ("down", "first eighth, no importance", "q5_k"),
    _EIGHT,
)

MIXES: Mapping[str, tuple[str, tuple[Rule, ...]]] = {
    "Q8_0": ("q8_0", ()),
    "Q6_K": ("q6_k", ()),
    "Q5_K_M": ("q5_k", _FAVOURED),
    "Q5_K_S": ("q5_k", ()),
    "Q5_1": ("q5_1", ()),
    "Q5_0": ("q5_0", (("down", "first eighth, importance", "q5_1"),)),
    "Q4_K_M": ("q4_k", (*_FAVOURED, _EIGHT)),
    "Q4_K_S": (
        "q4_k",
        (("value", "first four", "q5_k"), ("down", "first eighth", "q5_k"), _EIGHT),
    ),
    "Q4_1": ("q4_1", ()),
    "Q4_0": ("q4_0", (("down", "first eighth, importance", "q4_1"),)),
    "IQ4_NL": ("iq4_nl", _IQ4),
    "IQ4_XS": ("iq4_xs", _IQ4),
    "Q3_K_L": (
        "q3_k",
        (
            ("value", "everywhere", "q5_k"),
            ("down", "everywhere", "q5_k"),
            ("output", "not eight experts", "q5_k"),
        ),
    ),
    "Q3_K_M": (
        "q3_k",
        (
            ("value", "first two", "q5_k"),
            ("value", "everywhere", "q4_k"),
            ("down", "first sixteenth", "q5_k"),
            ("down", "everywhere", "q4_k"),
            _EIGHT,
            ("output", "everywhere", "q4_k"),
        ),
    ),
    "Q3_K_S": ("q3_k", (_EIGHT,)),
    "IQ3_M": (
        "iq3_s",
        (
            ("value", "everywhere", "q4_k"),
            ("down", "first eighth", "q4_k"),
            ("down", "favoured, eight experts", "q4_k"),
            _EIGHT,
            ("output", "everywhere", "q4_k"),
        ),
    ),
    "IQ3_S": ("iq3_s", (("value", "grouped heads", "q4_k"), _EIGHT)),
    "Q2_K": (
        "q2_k",
        (
            ("value", "grouped heads", "q4_k"),
            ("value", "everywhere", "q3_k"),
            ("down", "everywhere", "q3_k"),
            _EIGHT,
            ("output", "everywhere", "q3_k"),
        ),
    ),
}
"""By llama.cpp's name the type of a mix, and its exceptions, of which the first one holds."""

INSTEAD = {
    **dict.fromkeys(("iq3_s", "iq4_xs"), "iq4_nl"),
    **dict.fromkeys(("q2_k", "q3_k"), "q4_0"),
    **{"q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"},
}
"""The type of blocks of 32 where a row is no multiple of 256."""


def mix_types(mix: str, units: Sequence[Unit], *, imatrix: bool) -> dict[str, str]:
    """The type of every matrix in a file of a mix, by its name.

    Args:
        mix: A key of `MIXES`.
        units: All units of the dense model; embedding and head may be among them.
        imatrix: Whether the file is made with an importance matrix.

    Raises:
        ConfigError: A matrix's rows cannot be cut into blocks of 32, which llama.cpp refuses, or
            nothing is known of what the matrices of an attention or MLP are.

    Examples:
        >>> from evocompress.testing.decoders import SMOLLM2_135M
        >>> types = mix_types("Q4_K_M", SMOLLM2_135M.units(), imatrix=False)
        >>> [types[f"model.layers.5.{name}"] for name in ("self_attn.v_proj", "mlp.down_proj")]
        ['q8_0', 'q6_k']
    """
    matrices = [unit for unit in units if unit.kind in MATRICES]
    tree = UnitTree(units)
    roles = {unit.name: _role(unit, tree) for unit in matrices}
    _check_known(matrices, roles, tree)
    blocks = sum(unit.kind == "block" for unit in units)
    experts = max(map(len, tree.experts.values()), default=0)
    queries = _queries(matrices, roles)
    base, rules = MIXES[mix]
    found: dict[str, str] = {}
    seen = dict.fromkeys(roles.values(), 0)
    values = sum(role == "value" for role in roles.values())
    for unit in matrices:
        role = roles[unit.name]
        index = unit.block if experts > 1 and role == "down" else seen[role]
        count = values if role == "value" else blocks
        place = MatrixPlace(index, count, queries, experts, imatrix)
        seen[role] += 1
        kind = _of_head(base, unit) if role == "head" else _chosen(base, rules, role, place, blocks)
        found[unit.name] = _fitting(kind, unit, mix)
    return found


def _of_head(base: str, unit: Unit) -> str:
    """The type of the head, which is finer than that of the blocks."""
    assert unit.shape is not None
    fits = storage_type(base).fits(unit.shape[1])
    return "q6_k" if fits and base != "q8_0" else "q8_0"


def _chosen(
    base: str, rules: Iterable[Rule], role: TensorRole, place: MatrixPlace, blocks: int
) -> str:
    """The type before the length of the rows is looked at."""
    if place.experts == MANY and role in ("value", "key"):
        return "q8_0"
    kinds = (kind for own, where, kind in rules if own == role and WHERE[where](place))
    chosen = next(kinds, base)
    large = role == "value" and blocks == DEEP and place.queries > 1
    return "q5_k" if large and chosen in ("q3_k", "q4_k") else chosen


def _fitting(name: str, unit: Unit, mix: str) -> str:
    """The type, or what llama.cpp takes in its place."""
    assert unit.shape is not None
    columns = unit.shape[1]
    if storage_type(name).fits(columns):
        return name
    if name not in INSTEAD:
        raise ConfigError(
            f"llama.cpp has no file of mix {mix} for this model: {unit.name} has {columns} inputs, "
            f"no multiple of {storage_type(name).block}, and nothing stands in for {name}"
        )
    other = INSTEAD[name]
    return other if storage_type(other).fits(columns) else "f16"


def _role(unit: Unit, tree: UnitTree) -> TensorRole:
    """What a matrix is to llama.cpp, by what its rows and columns are."""
    if unit.kind == "outer":
        alone = not any(other.role == "head" for other in tree if other.kind == "outer")
        return "head" if unit.role == "head" or alone else "other"
    if tree.sublayer(unit).kind != "attention":
        return "down" if unit.columns else "other"
    if unit.of_cache:
        return "other"
    if {"value", "grouped"} & {*unit.rows}:
        return "value"
    if unit.columns:
        return "output"
    return "key" if unit.rows == ("key",) else "other"


def _check_known(matrices: Sequence[Unit], roles: Mapping[str, TensorRole], tree: UnitTree) -> None:
    """Refuses a model with a sub-layer of which no matrix is known to be the last one."""
    inside = [unit for unit in matrices if unit.kind == "matrix"]
    found = {tree.sublayer(unit).name: unit.name for unit in inside}
    known = {tree.sublayer(u).name for u in inside if roles[u.name] in ("output", "down")}
    for sublayer, matrix in found.items():
        if sublayer not in known:
            raise ConfigError(
                f"search.name: llama_cpp_mix chooses types by the roles of matrices, and knows "
                f"none of '{matrix}' and the others of its sub-layer"
            )


def _queries(matrices: Sequence[Unit], roles: Mapping[str, TensorRole]) -> int:
    """Query heads for each key-value head in the first block; 0 without an attention there."""
    shapes = {roles[unit.name]: unit for unit in reversed(matrices) if unit.block == 0}
    if not {"value", "output"} <= shapes.keys():
        return 0
    value, output = shapes["value"].shape, shapes["output"].shape
    assert value is not None and output is not None
    queries = output[1]
    alone = shapes["value"].rows == ("value",)
    return queries // (value[0] if alone else (value[0] - queries) // 2)
