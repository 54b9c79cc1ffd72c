"""The cost `memory` beside what llama.cpp and transformers really take. On SmolLM2-135M.

Six candidates are written: the dense model, and random ones that lack sub-layers, are narrower, are
stored in types of llama.cpp, or all of it. Each is loaded in a process of its own that ran a tiny
model before, and generates at the end of a full context: what is resident at most, less what was
before loading. llama.cpp has its own settings but for ``--no-repack``; transformers gets format
``hf``, which holds coarser types as weights of the model's own, and glibc gives back large pieces
of what is freed. llama.cpp is run in the environment
that `make engines` makes (or that ``EVOCOMPRESS_ENGINES`` names); where that is not there it has no
figures. Linux only.

Figures: `{program}_{candidate}_mib` and `..._predicted_mib`; `{program}_memory_error`, the largest
difference as a share of the real one; `memory_error`, that of both.

    python benchmarks/memory.py --json memory.json
    python benchmarks/memory.py --quick
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Figure, emit

from evocompress.compression.library import Library, build_library
from evocompress.core.config import LibraryConfig, SpaceConfig
from evocompress.core.types import Candidate
from evocompress.export import FORMATS, materialize
from evocompress.models.loading import LoadedModel, load
from evocompress.space import sampling
from evocompress.space.build import build_space
from evocompress.space.space import SearchSpace
from evocompress.testing.engines import resident_memory, why_missing
from evocompress.testing.tiny import windowless

Figures = dict[str, Figure]

PROGRAMS = {"llama.cpp": "gguf", "transformers": "hf"}
"""{program: format}."""

BITS = {"bits": {"types": ["q8_0", "q5_0", "q4_0"]}}
CANDIDATES: Mapping[str, tuple[Mapping[str, Any], int]] = {
    "dense": ({}, 4096),
    "drop": ({"drop": {}}, 2048),
    "width": ({"width": {}}, 4096),
    "joint": ({"drop": {}, "width": {}}, 1024),
    "bits": (BITS, 2048),
    "all": ({"drop": {}, "width": {}, **BITS}, 4096),
}
"""{candidate: (its space, context)}."""


@dataclass(frozen=True)
class Case:
    """A candidate that is served with a context."""

    name: str
    loaded: LoadedModel
    settings: Mapping[str, Any]
    context: int
    folder: Path

    def space(self, engine: str) -> SearchSpace:
        """The space, in which memory is that of a program."""
        family, model = self.loaded.family, self.loaded.model
        config: dict[str, Any] = dict(self.settings or {"drop": {}})
        config["memory"] = {"context": self.context, "engine": engine}
        return build_space(
            family.units(model),
            family.architecture(model),
            SpaceConfig.model_validate(config),
            obstacle=partial(FORMATS["gguf"].obstacle, self.loaded),
        )

    def candidate(self) -> Candidate:
        """A random one."""
        if not self.settings:
            return Candidate()
        space = self.space("llama.cpp")
        return space.candidate(sampling.random(space, np.random.default_rng(0)))

    def _library(self, candidate: Candidate) -> Library:
        """The levels of a candidate, made in the fastest way."""
        tokens = torch.arange(64).view(2, 32) % 200
        wanted = {name: (level,) for name, level in candidate.levels if not level.drop}
        config = LibraryConfig(width_criterion="magnitude", rounding="nearest")
        folder = self.folder / "library"
        return build_library(self.loaded, wanted, tokens, "", config, folder, batch=2)

    def figures(self, tiny: Mapping[str, Path]) -> Figures:
        """MiB in each program, and how many were predicted."""
        candidate, found = self.candidate(), {}
        library = self._library(candidate)
        for program, form in PROGRAMS.items():
            if program not in tiny:
                continue
            target = materialize(self.loaded, library, candidate, self.folder / form, format=form)
            costs = self.space(program).cost_model.of([candidate])
            real = resident_memory(program, tiny[program], target, context=self.context)
            key = f"{program.replace('.', '_')}_{self.name}"
            found[f"{key}_mib"] = real.bytes / 2**20
            found[f"{key}_predicted_mib"] = costs["memory"].item() / 2**20
        return found


def main() -> None:
    """Measure, print and write."""
    arguments = _arguments()
    small = windowless("llama", hidden=256)
    loaded = small if arguments.quick else load(arguments.model, dtype="bfloat16")
    figures: Figures = {"model": loaded.source}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tiny = {
            program: materialize(small, None, Candidate(), folder / form, format=form)
            for program, form in PROGRAMS.items()
            if _is_here(program)
        }
        for name, (settings, context) in CANDIDATES.items():
            own = min(context, 64) if arguments.quick else context
            figures |= Case(name, loaded, settings, own, folder / name).figures(tiny)
    errors = {program: _error(program.replace(".", "_"), figures) for program in tiny}
    figures |= {f"{name.replace('.', '_')}_memory_error": e for name, e in errors.items()}
    emit("memory", figures | {"memory_error": max(errors.values())}, arguments.json)


def _is_here(program: str) -> bool:
    reason = why_missing(program) if program == "llama.cpp" else None
    if reason is not None:
        print(reason)
    return reason is None


def _error(program: str, figures: Figures) -> float:
    """The largest difference of a program's candidates, as a share."""
    keys = [f"{program}_{name}" for name in CANDIDATES]
    pairs = [(figures[f"{key}_predicted_mib"], figures[f"{key}_mib"]) for key in keys]
    return max(abs(float(told or 0) / float(real or 0) - 1) for told, real in pairs)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--model", default="demo:smollm2-135m")
    parser.add_argument("--quick", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
