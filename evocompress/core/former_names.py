"""Where modules were in earlier versions: their former names go on working, with a warning."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

PACKAGE = "evocompress"

FORMER = {
    "apply": "compression.live_model",
    "config": "core.config",
    "config_file": "core.config_file",
    "costs": "space.costs",
    "criteria": "compression.criteria",
    "errors": "core.errors",
    "estimates": "evaluation.estimates",
    "families": "models.families",
    "files": "core.files",
    "heal": "healing",
    "journal": "pipeline.journal",
    "library": "compression.library",
    "pareto": "core.pareto",
    "planning": "pipeline.planning",
    "profile": "evaluation.profile",
    "progress": "core.progress",
    "proxies": "evaluation.proxies",
    "prune": "compression.weights",
    "run": "pipeline.loop",
    "run_folder": "pipeline.run_folder",
    "search.effects": "search.auto.sensitivity",
    "search.interactions": "search.surrogates.pairwise_model",
    "search.knapsack": "search.allocation.knapsack",
    "search.lazy_greedy": "search.baselines.lazy_greedy",
    "search.quadratic": "search.surrogates.second_order",
    "sweep": "pipeline.sweep",
    "types": "core.types",
}
"""{former name: name of today}, both within the package; modules below go with them."""


class _Former(MetaPathFinder):
    """Finds modules by their former names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        if package != PACKAGE:
            return None
        former = name if name in FORMER else name.partition(".")[0]
        if former not in FORMER:
            return None
        today = f"{PACKAGE}.{FORMER[former]}{name.removeprefix(former)}"
        warnings.warn(f"{fullname} is now {today}", FutureWarning, stacklevel=2)
        return ModuleSpec(fullname, _Today(today))


class _Today(Loader):
    """Gives the module of today under its former name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module, whose own spec the import system will replace."""
        module = import_module(self._name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Gives the module its own spec back; it has run already."""
        module.__spec__ = self._spec


def know_former_names() -> None:
    """Has imports find modules by their former names as well."""
    if not any(isinstance(finder, _Former) for finder in sys.meta_path):
        # Before the finder of paths, which would load the files of a package a second time.
        sys.meta_path.insert(0, _Former())
