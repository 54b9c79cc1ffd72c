"""Searchers: each asks for candidates and is told how good they are. No torch here.

`auto` is the default; `evolution`, `bayesian`, `baselines` and `allocation` are published methods;
`surrogates` predict, `fidelity` divides tokens among candidates, `operators` change genomes.

Interface: `SEARCHERS`, `evocompress.search.base.Searcher` and
`evocompress.search.generator_searcher` (one file and one line for a new searcher, see
docs/search.md).

Imported by: `api`, `pipeline`, `testing`.
"""

from __future__ import annotations

from evocompress.core.registry import Registry
from evocompress.search.allocation.allocation import Allocation
from evocompress.search.allocation.distortion_dp import DistortionDP
from evocompress.search.allocation.divide_and_conquer import DivideAndConquer
from evocompress.search.allocation.evopress_dp import EvoPressDP
from evocompress.search.allocation.fisher_knapsack import FisherKnapsack
from evocompress.search.allocation.flap import Flap
from evocompress.search.auto.auto import Auto
from evocompress.search.base import Searcher
from evocompress.search.baselines.blockpruner import BlockPruner
from evocompress.search.baselines.expert_output_error import ExpertOutputError
from evocompress.search.baselines.finercut import FinerCut
from evocompress.search.baselines.greedy import Greedy
from evocompress.search.baselines.laco import LaCo
from evocompress.search.baselines.llama_cpp_mix import LlamaCppMix
from evocompress.search.baselines.multipruner import MultiPruner
from evocompress.search.baselines.random_search import RandomSearch
from evocompress.search.baselines.routing_frequency import RoutingFrequency
from evocompress.search.baselines.shortened_llama import ShortenedLlama
from evocompress.search.baselines.shortgpt import ShortGPT
from evocompress.search.baselines.sleb import SLEB
from evocompress.search.baselines.stratified_random import StratifiedRandom
from evocompress.search.baselines.uniform import Uniform
from evocompress.search.baselines.window import Window
from evocompress.search.bayesian.gp import GP
from evocompress.search.bayesian.tpe import TPE
from evocompress.search.evolution.darwinlm import DarwinLM
from evocompress.search.evolution.evopress import EvoPress
from evocompress.search.evolution.moead import MOEAD
from evocompress.search.evolution.nsga2 import NSGA2
from evocompress.search.evolution.nsga3 import NSGA3
from evocompress.search.evolution.optuna_nsga2 import OptunaNSGA2
from evocompress.search.fidelity.moasha import MOASHA

__all__ = ["SEARCHERS"]

SEARCHERS: Registry[type[Searcher]] = Registry(
    "searcher",
    "evocompress.searchers",
    {
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
        "fisher_knapsack": FisherKnapsack,
        "llama_cpp_mix": LlamaCppMix,
        "nsga2": NSGA2,
        "nsga3": NSGA3,
        "moead": MOEAD,
        "optuna_nsga2": OptunaNSGA2,
        "tpe": TPE,
        "gp": GP,
    },
    lambda found: callable(found) and hasattr(found, "Settings"),
)
