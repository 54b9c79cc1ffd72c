"""Searchers: each asks for candidates and is told how good they are. No torch here."""

from __future__ import annotations

from evocompress.search.base import Searcher
from evocompress.search.blockpruner import BlockPruner
from evocompress.search.evopress import EvoPress
from evocompress.search.random_search import RandomSearch
from evocompress.search.uniform import Uniform

__all__ = ["SEARCHERS"]

SEARCHERS: dict[str, type[Searcher]] = {
    "evopress": EvoPress,
    "random": RandomSearch,
    "uniform": Uniform,
    "blockpruner": BlockPruner,
}
