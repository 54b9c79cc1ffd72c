"""Builds the search space that a configuration describes for a model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from evocompress.core.architecture import Architecture
from evocompress.core.canonical import SUBLAYERS, unlike_blocks
from evocompress.core.config import SpaceConfig
from evocompress.core.errors import ConfigError
from evocompress.core.storage import GGUF
from evocompress.core.types import DENSE, DROP, Level, Unit
from evocompress.core.units import UnitTree
from evocompress.space import budget as budgets
from evocompress.space.bits import cache_levels, stored_levels
from evocompress.space.costs import FileLayout, LatencyTable, Serving, cost_model
from evocompress.space.encoding import Encoding
from evocompress.space.format_constraint import Obstacle, fitting, with_types
from evocompress.space.levels import (
    check_patterns,
    droppable,
    sharing_narrowed,
    sparsity_levels,
    width_levels,
)
from evocompress.space.space import SearchSpace


def build_space(
    units: Sequence[Unit],
    architecture: Architecture,
    config: SpaceConfig,
    *,
    length: int | None = None,
    adds_bias: bool = False,
    latency: LatencyTable | None = None,
    obstacle: Obstacle | None = None,
    tied: Mapping[str, str] | None = None,
    untyped: Collection[str] = (),
    file: FileLayout | None = None,
) -> SearchSpace:
    """The search space that a configuration describes for a model.

    Without a budget a space of sparsities is bounded by the non-zero weights of its uniform
    genome, and another by nothing.

    Args:
        units: All units of the model, parents before their children.
        architecture: The model's dimensions.
        config: What may be compressed and within which budget.
        length: Tokens of the sequence that FLOPs and cache are counted for; see `cost_model`.
        adds_bias: Whether the width criterion gives the output of a narrowed sub-layer a bias, see
            `evocompress.compression.criteria.structure.StructuredCriterion`. Levels say so where
            the output matrix has none of its own.
        latency: The table of the costs ``latency`` and ``decode_latency``.
        obstacle: What keeps the format that ``fits`` names from expressing a candidate, if
            something does. Levels for which there is such a thing are left out.
        tied: {matrix: a word that is that of all matrices which must have one type in this format}.
        untyped: The matrices that can have no type in it: their types are left out.
        file: Of the format, for the cost ``file_bytes``.

    Raises:
        ConfigError: A value of the configuration does not fit the model.
        BudgetError: No genome meets the budget.
    """
    genes = _genes(units, architecture, config, adds_bias, (tied or {}, untyped))
    if obstacle is not None:
        what = f"space.fits: format '{config.fits}'"
        genes = with_types(fitting(genes, obstacle, what), genes, obstacle, what)
    model = cost_model(
        units,
        architecture,
        length=length,
        latency=latency,
        typed=config.bits is not None,
        serving=_serving(config),
        file=file and (file if _drops_sublayers(genes) else file.whole_blocks()),
    )
    matrices = {unit.name: genes.levels[gene] for unit, gene in zip(*genes.stored, strict=True)}
    table = model.table(genes.part_levels, matrices)
    space = SearchSpace(genes, model, table, budgets.resolve(config.budget, model))
    if config.budget:
        budgets.check_reachable(space)
        budgets.check_binding(space)
    elif config.sparsity and not (config.width or config.drop or config.bits or config.cache):
        nonzeros = space.costs(genes.default[None])["matrix_nonzeros"].item()
        return replace(space, budget={"matrix_nonzeros": nonzeros})
    return space


def _check_merge(units: Sequence[Unit]) -> None:
    """Refuse to merge blocks whose matrices cannot be added up."""
    if any(unit.positions for unit in units):
        raise ConfigError(
            "space.drop.merge: blocks of convolutions cannot be merged, because their batch norms "
            "would not fit the merged matrices; leave merge out"
        )
    if other := unlike_blocks(units):
        raise ConfigError(f"space.drop.merge: {other}; leave merge out")


def _drops_sublayers(genes: Encoding) -> bool:
    """Whether a sub-layer can be left out without the other one of its block."""
    pairs = zip(genes.members, genes.levels, strict=True)
    return any(DROP in levels and members[0].kind in SUBLAYERS for members, levels in pairs)


def _serving(config: SpaceConfig) -> Serving | None:
    """How the model is served, if the configuration says so.

    transformers unpacks compressed-tensors before the first pass, and holds no type of llama.cpp.
    """
    asked, engine = config.memory, config.engine
    if asked is None:
        return None
    typed = engine == "llama.cpp" and config.bits is not None and config.bits.lane == GGUF
    return Serving(engine, asked.context, asked.batch, asked.cache, typed)


def _genes(
    units: Sequence[Unit],
    architecture: Architecture,
    config: SpaceConfig,
    adds_bias: bool,
    rules: tuple[Mapping[str, str], Collection[str]],
) -> Encoding:
    _check_combination(config)
    if config.drop and config.drop.merge:
        _check_merge(units)
    tied: Mapping[str, str] = {}
    removable: frozenset[str] = frozenset()
    narrow: dict[str, tuple[Level, ...]] = {}
    levels: dict[str, tuple[Level, ...]] = {}
    targets: dict[str, int] = {}
    if config.drop:
        removable = droppable(units, config.drop)
    if config.width:
        narrow = width_levels(units, architecture, config.width, adds_bias=adds_bias)
        removable -= sharing_narrowed(units, narrow)
    for unit in units:
        smaller = (*narrow.get(unit.name, ()), *((DROP,) if unit.name in removable else ()))
        if smaller:
            levels[unit.name] = (DENSE, *smaller)
    if config.sparsity:
        for name, (choice, target) in sparsity_levels(units, architecture, config.sparsity).items():
            levels[name], targets[name] = choice, target
        check_patterns(units, narrow, levels, architecture)
    if config.bits:
        sparse = {name: levels[name] for name in targets}
        typed = stored_levels(units, architecture, config.bits, narrow, sparse, targets)
        able = [name for name in typed if name not in rules[1]]
        lost = typed.keys() - able
        if outer := [unit.name for unit in units if unit.kind == "outer" and unit.name in lost]:
            raise ConfigError(
                f"space.bits.scope: format '{config.fits}' cannot hold '{outer[0]}' in a type of "
                "its own: leave that out"
            )
        if not able:
            raise ConfigError(
                f"space.bits.match: format '{config.fits}' can hold none of the "
                f"{len(typed)} matrices in types of their own, as '{next(iter(typed))}'"
            )
        for name in able:
            levels[name], targets[name] = typed[name]
        tied = {name: word for name, word in rules[0].items() if name in able}
        _check_tied(levels, tied, config)
    if config.cache:
        caches = cache_levels(units, architecture, config.cache)
        levels |= caches
        tied = {**tied, **dict.fromkeys(caches if config.cache.shared else (), "cache")}
    members = _members([unit for unit in units if unit.name in levels], config, tied)
    return Encoding(
        tree=UnitTree(units),
        members=members,
        levels=tuple(levels[first.name] for first, *_ in members),
        default=np.array([targets.get(first.name, 0) for first, *_ in members], dtype=np.int64),
        merges=bool(config.drop and config.drop.merge),
    )


def _members(
    units: Sequence[Unit], config: SpaceConfig, tied: Mapping[str, str]
) -> tuple[tuple[Unit, ...], ...]:
    """Which units share a gene: the sub-layers of a uniform width, and matrices of one type."""
    uniform = config.width is not None and config.width.uniform
    members: dict[str, list[Unit]] = {}
    for unit in units:
        own = unit.kind if uniform and unit.kind in SUBLAYERS else tied.get(unit.name, unit.name)
        members.setdefault(own, []).append(unit)
    return tuple(map(tuple, members.values()))


def _check_tied(
    levels: Mapping[str, Sequence[Level]], tied: Mapping[str, str], config: SpaceConfig
) -> None:
    """Refuse matrices of one type that have different choices."""
    first: dict[str, str] = {}
    for name, word in tied.items():
        other = first.setdefault(word, name)
        if levels.get(name) != levels.get(other):
            raise ConfigError(
                f"space.fits: {config.fits} stores '{other}' and '{name}' in one type, and they "
                "have different levels here: give both types that fit both, and no zeros of their "
                "own ('sparsity'), or leave both out"
            )


def _check_combination(config: SpaceConfig) -> None:
    """Refuse parts of a space that contradict each other."""
    if not (config.sparsity or config.width or config.drop or config.bits or config.cache):
        raise ConfigError(
            "space: nothing may be compressed; give 'sparsity', 'width', 'drop', 'bits', 'cache' "
            "or several"
        )
    beside = config.width or config.sparsity or config.bits or config.cache
    if config.drop and config.drop.merge and beside:
        raise ConfigError(
            "space.drop.merge: merged blocks can be neither narrowed nor given zeros nor stored or "
            "cached coarser; leave out 'width', 'sparsity', 'bits' and 'cache'"
        )
    if config.width and config.width.uniform and config.drop and config.drop.units != ("block",):
        raise ConfigError(
            "space.width.uniform makes all layers alike, so only whole blocks can be dropped: "
            "give space.drop.units [block]"
        )
