"""Budgets: upper bounds on costs, and whether a space can meet them.

Levels of a gene are not ordered: fewer key-value heads with more queries each cost less of one
thing and more of another. But each gene has a least level, which costs no more than any other
of anything, and so has a space a few least genomes: a budget that any genome meets is met by one
of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np

from evocompress.core.arrays import Floats, Genome
from evocompress.core.config_file import nearest
from evocompress.core.errors import BudgetError, ConfigError
from evocompress.core.storage import stored_bits
from evocompress.core.types import Level, Unit
from evocompress.space.costs import (
    CACHED,
    COSTS,
    OPERATIONS,
    ROUTED,
    SERVED,
    TIMED,
    TYPED,
    WRITTEN,
    CostModel,
)
from evocompress.space.space import TOLERANCE, SearchSpace

SIZES = ("weight_bytes", *SERVED, *WRITTEN)
"""The costs that are shown in MiB."""


def check_cost(name: str, model: CostModel, key: str) -> None:
    """Refuse the name of a cost that cannot be told."""
    if name in OPERATIONS and model.uncounted:
        raise ConfigError(
            f"{key}: '{name}' of this model is not all counted, because {model.uncounted} computes "
            "more than products with its matrices; use params, weight_bytes or a measured latency"
        )
    if name in model.costs:
        return
    if name in CACHED and "kv_bytes" not in model.costs:
        known = ", ".join(name for name in COSTS if name not in CACHED)
        raise ConfigError(
            f"{key}: '{name}' is a cost of decoding with a key-value cache, which this model does "
            f"not have; choose from {known}"
        )
    if name in SERVED:
        raise ConfigError(
            f"{key}: '{name}' is told at a context: give space.memory={{context: 4096}}"
        )
    if name in WRITTEN:
        raise ConfigError(f"{key}: '{name}' is that of a format: give one as space.fits")
    if name in TYPED:
        raise ConfigError(
            f"{key}: '{name}' is a cost of types of stored weights, of which this space has none: "
            "give space.bits"
        )
    if name in ROUTED:
        raise ConfigError(
            f"{key}: '{name}' is a cost of mixtures of experts, and this model is none: all its "
            "parameters are active, so use params"
        )
    if name in TIMED and not model.costs.keys().isdisjoint(ROUTED):
        raise ConfigError(
            f"{key}: '{name}' cannot be measured for mixtures of experts, whose time depends on "
            "the routing; use flops, active_params or weight_bytes"
        )
    if name in TIMED:
        raise ConfigError(
            f"{key}: '{name}' needs a latency table of this model on this device: measure one "
            "with `evocompress profile`"
        )
    raise ConfigError(f"{key}: unknown cost '{name}'; {nearest(name, COSTS)}")


def resolve(budget: Mapping[str, float], model: CostModel) -> dict[str, float]:
    """Absolute bounds, see `absolute`.

    Raises:
        ConfigError: A cost is unknown.
    """
    for name in budget:
        check_cost(name, model, "space.budget")
    dense = model.dense()
    return {name: absolute(bound, dense[name]) for name, bound in budget.items()}


def absolute(bound: float, dense: float) -> float:
    """A bound in the cost's own unit; one of at most 1 is a share of the dense model's cost."""
    return bound * dense if bound <= 1 else float(bound)


def require(space: SearchSpace) -> None:
    """Refuse a space without a budget.

    Raises:
        ConfigError: It has none.
    """
    if not space.budget:
        raise ConfigError(
            "space.budget is missing: this search needs one, e.g. {body_params: 0.75}"
        )


def minimal_genomes(space: SearchSpace) -> Genome:
    """The most compressed genomes (F, U): what any genome can meet, one of these meets.

    There are several where each of them keeps another one of the attentions, the last. Mixtures
    keep as many experts as a token uses, those with the most zeros, or with the coarsest types.
    """
    genes = space.encoding
    least = genes.sizes - 1
    every = least[None]
    if not genes.keep_attention(least[None])[0]:
        keepers = genes.attentive
        every = np.tile(least, (len(keepers), 1))
        every[np.arange(len(keepers)), keepers] -= 1
    elif not genes.mixtures:
        return every
    kinds = (_zeros, _coarseness) if space.typed else (_zeros,)
    found = [genes.with_experts(every, _most(space, saved)) for saved in kinds]
    return space.deactivate(np.concatenate(found))


def _most(space: SearchSpace, saved: Callable[[Unit, Level], float]) -> Floats:
    """For each gene (U,) that is an expert the most that its matrices can save of something."""
    genes = space.encoding
    found: dict[str, float] = {}
    for gene in genes.matrices.tolist():
        for unit in genes.members[gene]:
            found[unit.owner] = found.get(unit.owner, 0) + saved(unit, genes.levels[gene][-1])
    return np.array([found.get(unit.name, 0) for unit in genes.units], dtype=np.float64)


def _zeros(unit: Unit, level: Level) -> float:
    return level.zeros


def _coarseness(unit: Unit, level: Level) -> float:
    """Weights of a matrix in a coarser type, the more the fewer bits that has."""
    return unit.numel / stored_bits(level.bits)


def check_reachable(space: SearchSpace) -> None:
    """Refuse a budget that even the most compressed genomes exceed."""
    lowest = minimal_genomes(space)
    if space.feasible(lowest).any():
        return
    least = space.costs(lowest)
    for name, bound in space.budget.items():
        if least[name].min() > bound * (1 + TOLERANCE):
            raise BudgetError(
                _spanned(space, name, "cannot be reached")
                + ": raise the bound or let the space compress more"
            )
    raise BudgetError(
        f"space.budget: each of {', '.join(space.budget)} can be reached, but not together: "
        "raise one of the bounds"
    )


def check_binding(space: SearchSpace) -> None:
    """Refuse a budget of bytes or bits that every candidate meets: it asks for nothing.

    Where all candidates cost the same, as with one type for all matrices, nothing else can be
    asked for.
    """
    least = space.costs(minimal_genomes(space))
    most = space.costs(np.zeros_like(space.encoding.default[None]))
    if all(
        name in (*SIZES, *TYPED) and least[name].min() < most[name].item() < bound
        for name, bound in space.budget.items()
    ):
        name = next(iter(space.budget))
        raise BudgetError(_spanned(space, name, "is met by every candidate") + ": lower the bound")


def check_types_counted(space: SearchSpace, costs: Collection[str]) -> None:
    """Refuse a choice of types for embedding, head or caches that no bound is about.

    Args:
        space: Whose units may have types.
        costs: All that are bounded or an objective.

    Raises:
        ConfigError: None of them counts what is outside the blocks, or cached, in its type.
    """
    every = space.cost_model.costs
    whole = [name for name, cost in every.items() if cost.per_outer_byte or cost.per_file_byte]
    cached = [name for name, cost in every.items() if cost.per_cached_byte or cost.per_served_byte]
    units = list(zip(space.units, space.levels, strict=True))
    outer = [unit for unit, levels in units if unit.kind == "outer" and len(levels) > 1]
    if outer and costs and not {*whole} & {*costs}:
        listed = " and ".join(f"the {unit.role} '{unit.name}'" for unit in outer)
        raise ConfigError(
            f"space.budget: {', '.join(costs)} counts no bytes of {listed}, which would keep the "
            f"largest of its types: bound {', '.join(whole)} (or file_bytes, memory) instead or "
            "beside it, or leave it out of space.bits.scope"
        )
    if costs and not {*cached} & {*costs} and any(u.kind == "cache" and lv[1:] for u, lv in units):
        raise ConfigError(
            f"space.budget: {', '.join(costs)} counts no bytes of what is cached in its type, "
            "which would keep the largest: bound kv_bytes (or llama.cpp's memory) instead or "
            "beside it, or leave out space.cache"
        )


def _spanned(space: SearchSpace, name: str, wrong: str) -> str:
    """What is wrong with a bound, and what the space spans."""
    lowest = minimal_genomes(space)
    least, most = space.costs(lowest)[name].min(), space.costs(np.zeros_like(lowest[:1]))[name]
    dense = space.cost_model.dense()[name]
    bound, low, high = (
        _amount(name, value, dense) for value in (space.budget[name], least, most.item())
    )
    return f"space.budget.{name}: {bound} {wrong}; this space spans {low} to {high}"


def _amount(name: str, value: float, dense: float) -> str:
    """A cost and its share of the dense model's, which is not shown as zero unless it is."""
    amount = f"{value / 2**20:,.1f} MiB" if name in SIZES else f"{value:.5g}"
    if not dense:
        return amount
    share = value / dense
    shown = f"{100 * share:.2g}%" if 0 < share < 0.001 else f"{share:.1%}"
    return f"{amount} ({shown} of dense)"
