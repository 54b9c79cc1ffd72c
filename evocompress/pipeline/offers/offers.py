"""What can be done to a model: what can be left out or cut, and which formats hold the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from evocompress.core.architecture import Architecture
from evocompress.core.canonical import canonical
from evocompress.core.types import DROP, Candidate, Level, Unit
from evocompress.core.units import UnitTree
from evocompress.export.formats import FORMATS, obstacle_of
from evocompress.models.families import FAMILIES
from evocompress.models.loading import LoadedModel

ACTIONS: Mapping[str, str] = {
    "attention": "leave out an attention, or what mixes tokens in its place",
    "mlp": "leave out an MLP",
    "block": "leave out a block",
    "heads": "cut heads",
    "channels": "cut channels of an MLP or of experts",
    "experts": "leave out experts",
    "zeros": "set weights to zero",
    "bits": "store matrices coarser",
}
"""What is told of each model, in words."""

LayoutOrigin = Literal["own", "derived", "matrices", "none"]


@dataclass(frozen=True)
class Holding:
    """What a format holds of what can be done to a model.

    Attributes:
        changes: Keys of `CHANGES`.
        reason: Why not the rest; empty where it holds all.
    """

    changes: tuple[str, ...]
    reason: str = ""


@dataclass(frozen=True)
class Offers:
    """What can be done to a model.

    Attributes:
        model_type: Of its config.
        cls: Its class.
        layout: ``own`` where a family is written for the type, ``derived`` where its layout was
            found by running a tiny model of it, ``matrices`` where only these are known, ``none``
            where none is so.
        blocks: How many there are.
        actions: In how many blocks each of `ACTIONS` can be done.
        formats: What each format holds.
        reasons: What cannot be done, and why, in sentences.

    Examples:
        >>> nothing("bart", "BartForCausalLM", "no list of blocks").holding
        []
    """

    model_type: str
    cls: str
    layout: LayoutOrigin
    blocks: int = 0
    actions: dict[str, int] = field(default_factory=dict)
    formats: dict[str, Holding] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()

    @property
    def holding(self) -> list[str]:
        """The formats that hold something beside the dense model."""
        return [name for name, found in self.formats.items() if found.changes]


def nothing(model_type: str, cls: str, reason: str) -> Offers:
    """The offers of a model to which nothing can be done."""
    return Offers(model_type, cls, "none", reasons=(reason,))


def offers(loaded: LoadedModel) -> Offers:
    """What can be done to a model, whose weights are not read.

    Examples:
        >>> from evocompress.testing.tiny import tiny_loaded
        >>> found = offers(tiny_loaded("llama"))
        >>> found.layout, found.actions["heads"], found.actions["experts"]
        ('derived', 3, 0)
        >>> found.formats["stock"].changes
        ('zeros', 'block', 'even')
    """
    family, model = loaded.family, loaded.model
    units = family.units(model)
    own = any(known.model_type == family.model_type for known in FAMILIES.usable().values())
    return Offers(
        family.model_type,
        type(model).__name__,
        "own" if own else "matrices" if family.alone else "derived",
        len(family.blocks(model)),
        {name: len({unit.block for unit in units if _goes(name, unit)}) for name in ACTIONS},
        _formats(loaded, units),
        tuple(getattr(family, "limits", ())),
    )


def _goes(action: str, unit: Unit) -> bool:
    """Whether a unit is one to which something can be done."""
    kinds = {"heads": "attention", "channels": "mlp", "experts": "expert"}
    kinds |= {"zeros": "matrix", "bits": "matrix"}
    if unit.kind != kinds.get(action, action):
        return False
    return unit.narrowable if action in ("heads", "channels") else unit.droppable


def _formats(loaded: LoadedModel, units: UnitTree) -> dict[str, Holding]:
    """What each format holds."""
    changes = _changes(units, loaded.family.architecture(loaded.model))
    found = {}
    for name in FORMATS.usable():
        if hasattr(FORMATS[name], "like"):  # which has a column of its own
            continue
        obstacles = {change: obstacle_of(name, loaded, one) for change, one in changes.items()}
        held = tuple(change for change, reason in obstacles.items() if reason is None)
        found[name] = Holding(held, next(filter(None, obstacles.values()), ""))
    return found


def _changes(units: UnitTree, architecture: Architecture) -> dict[str, Candidate]:
    """For each kind of change a candidate that has it, as far as the model can be changed so.

    They are zeros, a block less, a sub-layer less and a narrower sub-layer, each in a block behind
    the first one where there is one, and one width for all sub-layers of a kind.
    """
    behind = [unit for unit in units if unit.block] or list(units)
    levels: dict[str, tuple[Unit, Level]] = {}
    for unit in behind:
        kind = "block" if unit.kind == "block" else "part"
        if unit.kind not in ("block", "attention", "mlp"):
            continue
        if unit.droppable:
            levels.setdefault(kind, (unit, DROP))
        level = _narrower(unit, architecture) if kind == "part" and unit.narrowable else None
        if level is not None:
            levels.setdefault("width", (unit, level))
    changed = {name: {unit.name: level} for name, (unit, level) in levels.items()}
    if "width" in levels:
        narrow, level = levels["width"]
        every = (unit for unit in units if unit.kind == narrow.kind and unit.narrowable)
        changed["even"] = {unit.name: level for unit in every}
    plain: dict[str, dict[str, Level]] = {"zeros": {}}
    return {name: canonical(one, units) for name, one in (plain | changed).items()}


def _narrower(unit: Unit, architecture: Architecture) -> Level | None:
    """A sub-layer with about half its width, if that is less."""
    if unit.kind == "mlp":
        channels = architecture.channels[unit.block]
        return Level(channels=channels // 2) if channels > 1 else None
    groups = architecture.kv_heads[unit.block]
    each = architecture.heads[unit.block] // groups if groups else 0
    if groups > 1:
        return Level(kv_groups=groups // 2, group_heads=each)
    return Level(kv_groups=1, group_heads=each // 2) if each > 1 else None
