"""From what is wanted to a recipe: names and levels are checked before anything is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evocompress.compression.library.dense import DenseModel
from evocompress.compression.library.manifest import LibraryRecipe
from evocompress.compression.library.order import Methods, methods_named
from evocompress.core.config import LibraryConfig
from evocompress.core.errors import LibraryError
from evocompress.core.storage import stored_bits
from evocompress.core.types import Level

Wanted = Mapping[str, Sequence[Level]]
"""Levels of matrix, attention and MLP units."""


def make_recipe(
    dense: DenseModel,
    wanted: Wanted,
    calibration: str,
    config: LibraryConfig,
    propagate: Mapping[str, Level] | None,
) -> LibraryRecipe:
    """The recipe of a library with the wanted levels, on data with the fingerprint `calibration`.

    Levels named twice count once. `propagate` has the level of units whose later blocks do not see
    the middle one.

    Raises:
        LibraryError: A criterion, unit or level is unknown or impossible.
    """
    levels = {unit: tuple(dict.fromkeys(choice)) for unit, choice in wanted.items()}
    methods = methods_for(dense, levels, config)
    # Criteria themselves refuse zeros that a matrix cannot have.
    for unit, coupled in dense.coupled.items():
        for level in levels.get(unit, ()):
            if not level.dense:
                coupled.check(level, bias=methods.adds_bias(coupled))
    return LibraryRecipe(
        model=dense.fingerprint,
        calibration=calibration,
        criterion=config.criterion if methods.criterion else None,
        width_criterion=config.width_criterion if methods.structured else None,
        reconstruct=config.reconstruct if methods.structured else None,
        hessians=config.hessians,
        damping=config.damping,
        levels=levels,
        propagated=_propagated(levels, propagate) if config.hessians == "propagated" else {},
        rounding=methods.rounding,
    )


def methods_of(recipe: LibraryRecipe) -> Methods:
    """How the levels of a library are made."""
    return methods_named(
        recipe.criterion,
        recipe.width_criterion,
        recipe.reconstruct or False,
        recipe.rounding,
        types_of(recipe.levels),
    )


def types_of(levels: Wanted) -> frozenset[str]:
    """The coarser types among levels."""
    return frozenset(level.bits for own in levels.values() for level in own if level.bits)


def methods_for(dense: DenseModel, wanted: Wanted, config: LibraryConfig) -> Methods:
    """How the wanted levels are made.

    Raises:
        LibraryError: The model has no such unit, there is no criterion of such a name, or biases
            are to give something back where there are none.
    """
    unknown = [unit for unit in wanted if unit not in dense.matrices | dense.coupled]
    if unknown:
        raise LibraryError(
            f"the model has no matrix, attention or mlp {unknown[0]}: check the search space"
        )
    stored = {unit for unit, levels in wanted.items() if any(not one.dense for one in levels)}
    sparse = {unit for unit, levels in wanted.items() if any(one.zeros for one in levels)}
    methods = methods_named(
        config.criterion if sparse else None,
        config.width_criterion if stored & dense.coupled.keys() else None,
        config.reconstruct,
        config.rounding,
        types_of(wanted),
    )
    if sparse and len(without_bias(dense, wanted, methods)) == len(sparse):
        raise LibraryError(
            f"library.criterion: {config.criterion} gives to biases what zeros take from the mean "
            f"output, and none of the {len(sparse)} matrices with zeros has a bias: leave out +bias"
        )
    return methods


def without_bias(dense: DenseModel, wanted: Wanted, methods: Methods) -> list[str]:
    """The matrices with zeros that lack the bias which the criterion is to change."""
    if methods.criterion is None or not methods.criterion.compensates:
        return []
    return [
        unit
        for unit, levels in wanted.items()
        if unit in dense.linears
        and any(level.zeros for level in levels)
        and not methods.compensates(dense.linears[unit])
    ]


def _propagated(wanted: Wanted, chosen: Mapping[str, Level] | None) -> dict[str, Level]:
    propagated = {
        unit: sorted(levels, key=_compression)[(len(levels) - 1) // 2]
        for unit, levels in wanted.items()
        if levels
    }
    propagated |= chosen or {}
    for unit, level in propagated.items():
        if level not in wanted.get(unit, ()):
            raise LibraryError(f"{unit} cannot be propagated at {level.key}, which is not wanted")
    return propagated


def _compression(level: Level) -> tuple[float, float]:
    """Rises with what a level takes away from its unit."""
    if level.channels is not None:
        return -level.channels, 0
    if level.kv_groups is not None and level.group_heads is not None:
        # A group has one key and one value head, a query head its own part of the output.
        return -level.kv_groups * (1 + level.group_heads), 0
    return -stored_bits(level.bits), level.zeros
