"""Which levels the configuration admits for which units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from math import ceil

from evocompress.core.architecture import Architecture
from evocompress.core.config import DropSpace, SparsitySpace, WidthSpace
from evocompress.core.errors import ConfigError
from evocompress.core.types import Level, Unit
from evocompress.core.units import UnitTree
from evocompress.core.widths import dense_widths, narrowable

# Keeps 0.7 * 1000, which is a little above 700 in floating point, from becoming 701 zeros.
_ROUNDING = 1e-6


def droppable(units: Sequence[Unit], config: DropSpace) -> frozenset[str]:
    """Names of the units that may be removed.

    A protected unit protects what is in it, and what it is in. Experts of a mixture that has no
    more than each token uses cannot be removed.

    Raises:
        ConfigError: A glob matches no unit, or nothing is left that may be removed.
    """
    named = _protected(units, config.protect, "space.drop.protect")
    tree = UnitTree(units)
    above = {each.name for name in named for each in tree.above(tree.by_name[name])}
    if config.merge and any(unit.active for unit in units):
        raise ConfigError(
            "space.drop.merge: blocks with mixtures of experts cannot be merged, because experts "
            "of different blocks do not correspond; leave it out"
        )
    tight = _tight_mixtures(units)
    kinds_there = {unit.kind for unit in units}
    if "expert" in config.units and "expert" not in kinds_there:
        raise ConfigError(
            "space.drop.units: this model is no mixture of experts; leave 'expert' out"
        )
    wanted = [unit for unit in units if unit.kind in config.units and unit.droppable]
    free = [u.name for u in wanted if not (u.kind == "expert" and u.parent in tight)]
    free = [name for name in free if name not in named | above]
    if not free:
        kinds = " or ".join(config.units)
        if not any(unit.droppable for unit in units if unit.kind in config.units):
            raise ConfigError(f"space.drop.units: this model has no {kinds} that can be removed")
        raise ConfigError(f"space.drop: protect leaves no {kinds} to remove; protect fewer units")
    return frozenset(free)


def _tight_mixtures(units: Sequence[Unit]) -> set[str]:
    """The MLPs whose experts are all needed, because each token uses as many."""
    tree = UnitTree(units)
    mixtures = (tree.by_name[name] for name in tree.experts)
    return {m.name for m in mixtures if all(len(g) <= m.least for g in tree.groups(m.name))}


def width_levels(
    units: Sequence[Unit], architecture: Architecture, config: WidthSpace, *, adds_bias: bool
) -> dict[str, tuple[Level, ...]]:
    """The narrow levels of every sub-layer that has any, from most to least parameters.

    With `adds_bias` a narrow sub-layer's output needs a bias; where its output matrix has one
    already, that takes it up, and the level does not speak of it.

    Raises:
        ConfigError: A width does not fit the model, a glob matches no unit, or no level is
            left that is narrower than the model.
    """
    # All layers may share one attention, which then is no first of several.
    alone = config.protect is None and sum(unit.kind == "attention" for unit in units) == 1
    globs = () if config.uniform or alone else config.protect
    named = _protected(units, globs, "space.width.protect")
    biased = {u.parent for u in units if u.kind == "matrix" and u.columns and u.bias}
    if adds_bias and any(unit.active for unit in units) and "mlp" in config.units:
        raise ConfigError(
            "library.width_criterion adds a bias to the output of a narrowed MLP, which experts of "
            "a mixture do not have: choose another one"
        )
    shared = {unit.parent for unit in units if unit.kind == "matrix" and unit.shares}
    if adds_bias and any(
        u.name in shared and u.kind in config.units and u.narrowable for u in units
    ):
        raise ConfigError(
            "library.width_criterion adds a bias to the output of a narrowed sub-layer, which one "
            "that several blocks share does not have: choose another one"
        )
    levels = {
        unit.name: _widths(unit, architecture, config, adds_bias and unit.name not in biased)
        for unit in units
        if unit.kind in config.units and unit.name not in named and unit.narrowable
    }
    if not levels and any(unit.kind in config.units and not unit.narrowable for unit in units):
        raise ConfigError(
            f"space.width.units: the {' and '.join(config.units)} of this model cannot be "
            "narrowed, because parts of it depend on all heads or channels together; leave it out"
        )
    narrow = {name: widths for name, widths in levels.items() if widths}
    if not levels:
        kinds = " or ".join(config.units)
        raise ConfigError(f"space.width: protect leaves no {kinds} to narrow; protect fewer units")
    if not narrow:
        raise ConfigError("space.width: no width asked for is narrower than the model's; lower one")
    shapes = set(zip(architecture.kv_heads, architecture.heads, architecture.channels, strict=True))
    if config.uniform and len(shapes) > 1:
        raise ConfigError(
            "space.width.uniform: the layers of this model differ in width; leave uniform out"
        )
    return narrow


def sharing_narrowed(units: Sequence[Unit], narrow: Mapping[str, object]) -> frozenset[str]:
    """The attentions that run matrices which are narrowed for several blocks, and these blocks.

    What one of them costs would depend on the width, were it dropped on its own.
    """
    shared = {unit.parent for unit in units if unit.kind == "matrix" and unit.shares}
    cut = shared & narrow.keys()
    owners = {unit.parent for unit in units if unit.name in cut}
    sharing = [unit for unit in units if unit.kind == "attention" and unit.shares in owners]
    return frozenset(name for unit in sharing for name in (unit.name, unit.owner))


def _widths(
    unit: Unit, architecture: Architecture, config: WidthSpace, bias: bool
) -> tuple[Level, ...]:
    if unit.kind == "mlp":
        channels = architecture.channels
        return _channel_levels(channels[unit.block], max(channels), config, bias)
    grids = [
        (groups, heads // groups)
        for groups, heads in zip(architecture.kv_heads, architecture.heads, strict=True)
        if groups
    ]
    kv_heads = architecture.kv_heads[unit.block]
    whole = kv_heads, architecture.heads[unit.block] // kv_heads
    widest = max(groups for groups, _ in grids), max(within for _, within in grids)
    return _head_levels(whole, widest, config, bias)


def _channel_levels(whole: int, widest: int, config: WidthSpace, bias: bool) -> tuple[Level, ...]:
    multiple = config.multiple_of
    if multiple > widest:
        raise ConfigError(
            f"space.width.multiple_of: {multiple} is more than the model's {widest} FFN channels; "
            "lower it"
        )
    exact = _counts(config.channels, whole, widest, "channels", "FFN channels")
    rounded = {ceil(count / multiple) * multiple for count in exact}
    narrow = sorted((count for count in rounded if count < whole), reverse=True)
    if not narrow and whole == widest:
        raise ConfigError(
            f"space.width.channels: rounded up to multiples of {multiple}, every width is the "
            f"dense one of {whole} channels; lower multiple_of, or leave mlp out of units"
        )
    return tuple(Level(channels=count, bias=bias) for count in narrow)


def _head_levels(
    whole: tuple[int, int], widest: tuple[int, int], config: WidthSpace, bias: bool
) -> tuple[Level, ...]:
    groups = _counts(config.kv_groups, whole[0], widest[0], "kv_groups", "key-value heads")
    what = "query heads for each key-value head"
    queries = _counts(config.group_heads, whole[1], widest[1], "group_heads", what)
    grid = {(g, q) for g in groups for q in queries} - {whole}
    # A key and a value are as large as a query and its share of the output.
    ordered = sorted(grid, key=lambda width: (width[0] * (width[1] + 1), width), reverse=True)
    return tuple(Level(kv_groups=g, group_heads=q, bias=bias) for g, q in ordered)


def _counts(
    widths: Sequence[float] | str, whole: int, widest: int, key: str, what: str
) -> set[int]:
    """How many of the `whole` the widths mean; a 1 beside larger counts is a count, too.

    Counts that only wider layers have, up to `widest`, mean nothing here.
    """
    if isinstance(widths, str):  # "all"
        return set(range(1, whole + 1))
    fractions = [width for width in widths if width < 1 or max(widths) <= 1]
    counts = set(widths) - set(fractions)
    for count in counts:
        if count != int(count):
            raise ConfigError(
                f"space.width.{key}: {count} is neither a fraction of at most 1 nor a whole "
                f"number of {what}; give 1 to {widest}, or fractions"
            )
        if count > widest:
            raise ConfigError(
                f"space.width.{key}: {count:.0f} is more than the model's {widest} {what}; "
                f"give 1 to {widest}"
            )
    there = {int(count) for count in counts if count <= whole}
    return {max(ceil(width * whole - _ROUNDING), 1) for width in fractions} | there


def _protected(units: Sequence[Unit], globs: Sequence[str] | None, key: str) -> frozenset[str]:
    """The units that match one of the globs, and what lies below them.

    Without globs it is the first attention, if any: several programs cannot do without it.
    """
    large = [unit for unit in units if unit.kind not in ("matrix", "cache")]
    if globs is None:
        named = frozenset([unit.name for unit in large if unit.kind == "attention"][:1])
    else:
        named = matching_units(large, globs, key)
    found = set(named)
    found.update(unit.name for unit in large if unit.parent in named)
    found.update(unit.name for unit in large if unit.parent in found)
    return frozenset(found)


def sparsity_levels(
    units: Sequence[Unit], architecture: Architecture, config: SparsitySpace
) -> dict[str, tuple[tuple[Level, ...], int]]:
    """The levels of every matched matrix, and the index of the target among them.

    EvoPress (2410.14649): one count of weights between neighbouring levels, the same for all
    matrices, so that raising one and lowering another keeps the total exactly.

    Raises:
        ConfigError: A glob matches no matrix, or the pattern does not fit the target or a
            matrix.
    """
    matrices = [unit for unit in units if unit.kind == "matrix"]
    matched = matching_units(matrices, config.match, "space.sparsity.match")
    step = _step(architecture, config)
    chosen = [unit for unit in matrices if unit.name in matched]
    if config.pattern:
        return {unit.name: ((_patterned(unit, config),), 0) for unit in chosen}
    return {unit.name: _around_target(unit, config, step) for unit in chosen}


def check_patterns(
    matrices: Sequence[Unit],
    widths: Mapping[str, Sequence[Level]],
    sparsities: Mapping[str, Sequence[Level]],
    architecture: Architecture,
) -> None:
    """Refuse an N:M pattern whose M does not divide the inputs that a width leaves."""
    tree = UnitTree(matrices)
    for unit in tree:
        owner = tree.sublayer(unit).name
        for level in widths.get(owner, ()) if narrowable(unit.columns) else ():
            dense = dense_widths(architecture, unit.block)
            inputs = dense.at(level).shape(unit, dense)[1]
            pattern = next((s.pattern for s in sparsities.get(unit.name, ()) if s.pattern), "")
            if pattern and inputs % int(pattern.split(":")[1]):
                raise ConfigError(
                    f"space.sparsity.pattern '{pattern}': level {level.key} leaves '{unit.name}' "
                    f"{inputs} inputs, which the pattern does not divide; choose other widths"
                )


def _step(architecture: Architecture, config: SparsitySpace) -> int:
    """Weights between two levels."""
    if config.step != "auto":
        return config.step
    margin = 0.5 * min(config.target, 1 - config.target) / max(config.levels, 1)
    return max(int(margin * architecture.hidden**2), 1)


def _around_target(unit: Unit, config: SparsitySpace, step: int) -> tuple[tuple[Level, ...], int]:
    target = ceil(config.target * unit.numel - _ROUNDING)
    offsets = range(-config.levels, config.levels + 1)
    counts = [n for n in (target + k * step for k in offsets) if 0 <= n <= unit.numel]
    return tuple(Level(zeros=count) for count in counts), counts.index(target)


def _patterned(unit: Unit, config: SparsitySpace) -> Level:
    """The only level of an N:M space."""
    zeros, group = (int(part) for part in config.pattern.split(":"))
    where = f"space.sparsity.pattern '{config.pattern}'"
    width = unit.shape[1] if unit.shape else 0
    if width % group:
        raise ConfigError(
            f"{where}: the input width {width} of '{unit.name}' is no multiple of {group}; "
            "choose another pattern or leave the unit out of match"
        )
    return Level(zeros=unit.numel * zeros // group, pattern=config.pattern)


def matching_units(units: Sequence[Unit], globs: Sequence[str], key: str) -> frozenset[str]:
    """Names of the units that match any of the globs; each glob must match a unit."""
    matched: set[str] = set()
    for glob in globs:
        names = [unit.name for unit in units if fnmatchcase(unit.name, glob)]
        if not names:
            examples = ", ".join(f"'{unit.name}'" for unit in units[:3])
            raise ConfigError(f"{key}: '{glob}' matches no unit; names look like {examples}")
        matched.update(names)
    return frozenset(matched)
