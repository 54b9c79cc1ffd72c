"""Searchers: each asks for candidates and is told how good they are. No torch here."""

from __future__ import annotations

from evocompress.search.allocation import Allocation
from evocompress.search.auto import Auto
from evocompress.search.base import Searcher
from evocompress.search.blockpruner import BlockPruner
from evocompress.search.darwinlm import DarwinLM
from evocompress.search.distortion_dp import DistortionDP
from evocompress.search.divide_and_conquer import DivideAndConquer
from evocompress.search.evopress import EvoPress
from evocompress.search.evopress_dp import EvoPressDP
from evocompress.search.expert_output_error import ExpertOutputError
from evocompress.search.finercut import FinerCut
from evocompress.search.flap import Flap
from evocompress.search.gp import GP
from evocompress.search.greedy import Greedy
from evocompress.search.laco import LaCo
from evocompress.search.moasha import MOASHA
from evocompress.search.moead import MOEAD
from evocompress.search.multipruner import MultiPruner
from evocompress.search.nsga2 import NSGA2
from evocompress.search.nsga3 import NSGA3
from evocompress.search.optuna_nsga2 import OptunaNSGA2
from evocompress.search.random_search import RandomSearch
from evocompress.search.routing_frequency import RoutingFrequency
from evocompress.search.shortened_llama import ShortenedLlama
from evocompress.search.shortgpt import ShortGPT
from evocompress.search.sleb import SLEB
from evocompress.search.stratified_random import StratifiedRandom
from evocompress.search.tpe import TPE
from evocompress.search.uniform import Uniform
from evocompress.search.window import Window

__all__ = ["SEARCHERS"]

SEARCHERS: dict[str, type[Searcher]] = {
    "auto": Auto,
    "evopress": EvoPress,
    "random": RandomSearch,
    "stratified_random": StratifiedRandom,
    "moasha": MOASHA,
    "darwinlm": DarwinLM,
    "greedy": Greedy,
    "divide_and_conquer": DivideAndConquer,
    "uniform": Uniform,
    "shortgpt": ShortGPT,
    "window": Window,
    "shortened_llama": ShortenedLlama,
    "sleb": SLEB,
    "blockpruner": BlockPruner,
    "finercut": FinerCut,
    "laco": LaCo,
    "multipruner": MultiPruner,
    "routing_frequency": RoutingFrequency,
    "expert_output_error": ExpertOutputError,
    "flap": Flap,
    "allocation": Allocation,
    "evopress_dp": EvoPressDP,
    "distortion_dp": DistortionDP,
    "nsga2": NSGA2,
    "nsga3": NSGA3,
    "moead": MOEAD,
    "optuna_nsga2": OptunaNSGA2,
    "tpe": TPE,
    "gp": GP,
}
