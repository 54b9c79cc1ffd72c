"""A run as far as it can be checked before latencies are measured, which takes minutes."""

from __future__ import annotations

from collections.abc import Mapping

from evocompress.core.config import RunConfig
from evocompress.space.costs import TIMED, LatencyTable
from evocompress.space.costs.latency import Conditions, Phase

_PHASE = Phase(batch=1, tokens=1, dense=1.0, base=1.0, attention={(1, 1): 0.0}, mlp={1: 0.0})

UNMEASURED = LatencyTable(
    Conditions("none", "none", 0, "none", "none", "none", (1, 1), (1, 1)), _PHASE, _PHASE
)
"""Stands in for a table that is not measured yet: no candidate saves any time."""


def unbounded(config: RunConfig) -> RunConfig:
    """The same run with bounds on latencies that any candidate meets."""
    space, search = config.space, config.search
    budget = {name: 1.0 if name in TIMED else bound for name, bound in space.budget.items()}
    changed: dict[str, object] = {"space": space.model_copy(update={"budget": budget})}
    named = search.settings.get("range")
    if isinstance(named, Mapping):
        # Those of latencies are as wide as can be; an empty one is left to err.
        ranges = {
            name: (0.0, 1.0) if name in TIMED and low < high else (low, high)
            for name, (low, high) in named.items()
        }
        changed["search"] = search.model_copy(update={"range": ranges})
    return config.model_copy(update=changed)
