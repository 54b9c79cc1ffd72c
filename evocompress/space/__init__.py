"""The search space: which candidates there are, what they cost, and which meet the budget.

An `Encoding` writes candidates as arrays of level indices; `costs` are sums over sub-layers;
`build` makes a space from a configuration and the units of a model; `sampling`, `repair` and
`single_changes` are what searchers move with. Only numpy.

Interface: `build_space`, `SearchSpace`, `evocompress.space.costs.cost_model`.

Imported by: `api`, `distributed`, `evaluation`, `export`, `pipeline`, `report`, `search`,
`testing`.
"""

from evocompress.space.build import build_space
from evocompress.space.space import SearchSpace

__all__ = ["SearchSpace", "build_space"]
