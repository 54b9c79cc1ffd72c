"""The canonical form of a candidate: one way to write what is one model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from evocompress.core.errors import ConfigError
from evocompress.core.types import DENSE, DROP, Candidate, Level, Unit, UnitKind
from evocompress.core.units import UnitTree

SUBLAYERS: tuple[UnitKind, ...] = ("attention", "mlp")

COSTED: tuple[UnitKind, ...] = (*SUBLAYERS, "expert")
"""What costs are counted for: sub-layers, and the experts of those that are mixtures of them."""

ATTENTIVE: tuple[UnitKind, ...] = ("attention", "block")
"""The kinds of units that an attention is, or is in."""

MATRICES: tuple[UnitKind, ...] = ("matrix", "outer")
"""What can have a type of stored weights: matrices of the blocks, and those outside of them."""

TYPED: tuple[UnitKind, ...] = (*MATRICES, "cache")
"""What can have a type: these, and what attentions cache."""

_FIELDS: dict[UnitKind, frozenset[str]] = {
    "block": frozenset({"drop", "merge"}),
    "attention": frozenset({"drop", "kv_groups", "group_heads", "bias"}),
    "mlp": frozenset({"drop", "channels", "bias"}),
    "expert": frozenset({"drop"}),
    "matrix": frozenset({"zeros", "pattern", "bits"}),
    "cache": frozenset({"cache"}),
    "outer": frozenset({"bits"}),
}


def level_in(named: Mapping[str, Level], unit: Unit, tree: UnitTree) -> Level:
    """The level of a unit in a candidate {unit name: level}: a drop in what is dropped."""
    if any(named.get(each.name) == DROP for each in tree.above(unit)):
        return DROP
    return named.get(unit.name, DENSE)


def canonical(levels: Mapping[str, Level], units: Sequence[Unit]) -> Candidate:
    """The candidate in canonical form, of {unit name: level}; a unit that is not named is dense.

    Dense levels and the inactive descendants of dropped units are left out, and a dropped block is
    written as its two dropped sub-layers. `units` are all of the model, parents first.

    Raises:
        ConfigError: A name is not that of a unit, a level is not one of its kind of unit, a
            block is merged with others that are not dropped, or a mixture of experts has fewer
            than each token uses.
    """
    unknown = levels.keys() - {unit.name for unit in units}
    if unknown:
        like = next(unit.name for unit in reversed(units) if unit.kind not in ("outer", "cache"))
        raise ConfigError(
            f"unit '{min(unknown)}' is not in this model; its units look like '{like}'"
        )
    removed: set[str] = set()
    kept: dict[str, Level] = {}
    for unit in units:
        level = levels.get(unit.name, DENSE)
        inactive = unit.parent in removed
        if not inactive:
            _check_kind(unit, level)
        if inactive or level.drop:
            removed.add(unit.name)
        # A dropped MLP says all of its experts.
        named = unit.kind in SUBLAYERS or (unit.kind == "expert" and not inactive)
        if named and unit.name in removed:
            kept[unit.name] = DROP
        elif unit.name not in removed and not level.dense:
            kept[unit.name] = level
    _check_merges(kept, units)
    if any(unit.active for unit in units):
        short = too_few_experts(kept, units)
        if short:
            raise ConfigError(short)
    return Candidate(tuple(sorted(kept.items())))


def without_caches(candidate: Candidate) -> Candidate:
    """What a candidate says of weights."""
    return Candidate(tuple(entry for entry in candidate.levels if not entry[1].cache))


def merge_levels(units: Iterable[Unit], dropped: Collection[str]) -> dict[str, Level]:
    """For each kept block before a run of dropped ones the level that merges them into it.

    The units must come block by block, in order. Dropped blocks at the very beginning are only
    dropped.
    """
    runs: dict[str, int] = {}
    last = None
    for block in (unit.name for unit in units if unit.kind == "block"):
        if block not in dropped:
            last = block
        elif last is not None:
            runs[last] = runs.get(last, 0) + 1
    return {block: Level(merge=count) for block, count in runs.items()}


def unlike_blocks(units: Iterable[Unit]) -> str | None:
    """Why blocks cannot be merged where one has other matrices than the first; ``None`` if none."""
    matrices: dict[int, tuple[str, set[tuple[object, ...]]]] = {}
    for unit in units:
        if unit.kind == "block":
            matrices[unit.block] = unit.name, set()
        elif unit.kind == "matrix":
            matrices[unit.block][1].add((unit.role, unit.shape, unit.bias))
    first, *others = matrices.values()
    name = next((name for name, own in others if own != first[1]), None)
    if name is None:
        return None
    return f"blocks cannot be merged where they differ, as '{name}' does from '{first[0]}'"


def too_few_experts(levels: Mapping[str, Level], units: Iterable[Unit]) -> str | None:
    """Why levels, by unit, leave a mixture fewer experts than a token uses; ``None`` if not."""
    tree = units if isinstance(units, UnitTree) else UnitTree(units)
    for name in tree.experts:
        unit, gone = tree.by_name[name], levels.get(name, DENSE).drop
        for own in () if gone else tree.groups(name):
            kept = sum(not levels.get(expert.name, DENSE).drop for expert in own)
            if kept < unit.least:
                return _too_few(unit, own, kept)
    return None


def _too_few(unit: Unit, experts: Sequence[Unit], kept: int) -> str:
    """Why an MLP cannot keep as few of some experts, which are one group of them or all."""
    if unit.groups == 1:
        why = f"would keep {kept} experts, but each token uses {unit.least}"
    else:
        why = (
            f"would keep {kept} of the {len(experts)} experts from '{experts[0].name}' on, but its "
            f"router chooses groups of experts first, and needs {unit.least} in each"
        )
    return f"unit '{unit.name}' {why}: drop fewer of them, or the whole MLP"


def _check_kind(unit: Unit, level: Level) -> None:
    """Refuse a level that units of this kind do not have."""
    if level.drop and unit.kind == "matrix":
        raise ConfigError(f"matrix '{unit.name}' cannot be dropped alone: drop '{unit.parent}'")
    if level.drop and not unit.droppable:
        raise ConfigError(
            f"unit '{unit.name}' cannot be dropped: what bypasses it is not the identity"
        )
    if level.narrow and not unit.narrowable:
        raise ConfigError(
            f"unit '{unit.name}' cannot be narrowed: its parts depend on all of its heads or "
            "channels together"
        )
    strange = not level.dense and level.to_json().keys() - _FIELDS[unit.kind]
    if strange or (level.kv_groups is None) != (level.group_heads is None):
        raise ConfigError(
            f"unit '{unit.name}': '{level.key}' is no level of a unit of kind {unit.kind}"
        )


def _check_merges(kept: Mapping[str, Level], units: Sequence[Unit]) -> None:
    """Refuse a merge with blocks that are not dropped."""
    merged = {name: level.merge for name, level in kept.items() if level.merge}
    if not merged:
        return
    if any(unit.positions for unit in units):
        raise ConfigError(
            f"block '{next(iter(merged))}': blocks of convolutions cannot be merged, because their "
            "batch norms would not fit the merged matrices"
        )
    if other := unlike_blocks(units):
        raise ConfigError(f"block '{next(iter(merged))}': {other}")
    blocks = [unit.name for unit in units if unit.kind == "block"]
    parts = [unit for unit in units if unit.kind in SUBLAYERS]
    present = {part.parent for part in parts if kept.get(part.name) != DROP}
    for name, count in merged.items():
        begin = blocks.index(name) + 1
        followers = blocks[begin : begin + count]
        if name not in present or len(followers) < count or present & set(followers):
            raise ConfigError(
                f"block '{name}' is merged with the next {count}: keep it and drop all of them"
            )
