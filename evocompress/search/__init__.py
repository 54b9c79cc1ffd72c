"""Searchers: each asks for candidates and is told how good they are. No torch here."""

from __future__ import annotations

from evocompress.search.base import Searcher
from evocompress.search.blockpruner import BlockPruner
from evocompress.search.evopress import EvoPress
from evocompress.search.finercut import FinerCut
from evocompress.search.flap import Flap
from evocompress.search.laco import LaCo
from evocompress.search.multipruner import MultiPruner
from evocompress.search.nsga2 import NSGA2
from evocompress.search.random_search import RandomSearch
from evocompress.search.shortened_llama import ShortenedLlama
from evocompress.search.shortgpt import ShortGPT
from evocompress.search.sleb import SLEB
from evocompress.search.uniform import Uniform
from evocompress.search.window import Window

__all__ = ["SEARCHERS"]

SEARCHERS: dict[str, type[Searcher]] = {
    "evopress": EvoPress,
    "random": RandomSearch,
    "uniform": Uniform,
    "shortgpt": ShortGPT,
    "window": Window,
    "shortened_llama": ShortenedLlama,
    "sleb": SLEB,
    "blockpruner": BlockPruner,
    "finercut": FinerCut,
    "laco": LaCo,
    "multipruner": MultiPruner,
    "flap": Flap,
    "nsga2": NSGA2,
}
