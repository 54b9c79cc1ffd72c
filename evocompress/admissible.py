"""Which levels the configuration admits for which units."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from math import ceil

from evocompress.config import DropSpace, SparsitySpace
from evocompress.errors import ConfigError
from evocompress.types import DENSE, DROP, Architecture, Level, Unit

# Keeps 0.7 * 1000, which is a little above 700 in floating point, from becoming 701 zeros.
_ROUNDING = 1e-6


def drop_levels(units: Sequence[Unit], config: DropSpace) -> dict[str, tuple[Level, ...]]:
    """The levels (dense, drop) of every unit that may be removed.

    A protected block protects its sub-layers, and a protected sub-layer its block.

    Raises:
        ConfigError: A glob matches no unit, or nothing is left that may be removed.
    """
    large = [unit for unit in units if unit.kind != "matrix"]
    named = set(_matching(large, config.protect, "space.drop.protect"))
    above = {unit.parent for unit in large if unit.name in named}
    below = {unit.name for unit in large if unit.parent in named}
    free = [
        unit.name
        for unit in large
        if unit.kind in config.units and unit.name not in named | above | below
    ]
    if not free:
        kinds = " or ".join(config.units)
        raise ConfigError(f"space.drop: protect leaves no {kinds} to remove; protect fewer units")
    return dict.fromkeys(free, (DENSE, DROP))


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
    matched = _matching(matrices, config.match, "space.sparsity.match")
    step = _step(architecture, config)
    chosen = [unit for unit in matrices if unit.name in matched]
    if config.pattern:
        return {unit.name: ((_patterned(unit, config),), 0) for unit in chosen}
    return {unit.name: _around_target(unit, config, step) for unit in chosen}


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
    if not 0 < zeros < group or abs(zeros / group - config.target) > 1e-9:
        raise ConfigError(
            f"{where} makes N zeros in each M inputs, so target must be N/M and below 1; "
            f"it is {config.target}"
        )
    width = unit.shape[1] if unit.shape else 0
    if width % group:
        raise ConfigError(
            f"{where}: the input width {width} of '{unit.name}' is no multiple of {group}; "
            "choose another pattern or leave the unit out of match"
        )
    return Level(zeros=unit.numel * zeros // group, pattern=config.pattern)


def _matching(units: Sequence[Unit], globs: Sequence[str], key: str) -> frozenset[str]:
    """Names of the units that match any of the globs, each of which must match one."""
    matched: set[str] = set()
    for glob in globs:
        names = [unit.name for unit in units if fnmatchcase(unit.name, glob)]
        if not names:
            examples = ", ".join(f"'{unit.name}'" for unit in units[:3])
            raise ConfigError(f"{key}: '{glob}' matches no unit; names look like {examples}")
        matched.update(names)
    return frozenset(matched)
