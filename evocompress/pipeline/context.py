"""Puts the parts of a run together: model, space, calibration, library, proxy, searcher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from evocompress.compression.criteria import STRUCTURED
from evocompress.compression.library import Library, build_library, open_library
from evocompress.compression.library.builder import MakeBlocks, make_blocks
from evocompress.compression.library.manifest import NAME as MANIFEST
from evocompress.compression.library.manifest import read_manifest
from evocompress.compression.live_model import LiveModel
from evocompress.core.circumstances import Admit
from evocompress.core.config import LibraryConfig, RunConfig, SpaceConfig
from evocompress.core.errors import ConfigError, LibraryError, RunError
from evocompress.core.finetuning import Recipe
from evocompress.core.progress import Reporter
from evocompress.core.types import Level
from evocompress.core.units import UnitTree
from evocompress.evaluation import proxies
from evocompress.evaluation.calibration.calibration import Calibration, load_calibration
from evocompress.evaluation.estimates.answer import LiveEstimates
from evocompress.evaluation.executor import LocalExecutor
from evocompress.evaluation.profile import (
    MeasureTable,
    measure_here,
    profile,
    read_table,
    table_path,
)
from evocompress.evaluation.proxies import Proxy
from evocompress.export import FORMATS, PROGRAMS, check_task
from evocompress.export.formats import obstacle_of, type_rules_of
from evocompress.healing.tuned import fine_tunings
from evocompress.models.families.outer import every_unit
from evocompress.models.loading import LoadedModel, load_as
from evocompress.pipeline.header_facts import genes_digest, table_facts
from evocompress.pipeline.journal import read_header
from evocompress.pipeline.known_parts import check_known_parts
from evocompress.pipeline.loop import Executor
from evocompress.pipeline.resolve import (
    all_costs_named,
    costs_named,
    make_searcher,
    packages,
    searcher_settings,
    threads_of,
    wanted_layout,
)
from evocompress.pipeline.run_folder import RunFolder
from evocompress.pipeline.short_healing import HealEach, heal_each
from evocompress.pipeline.unmeasured_latency import UNMEASURED, unbounded
from evocompress.search import SEARCHERS
from evocompress.search.base import Searcher, SearcherSettings
from evocompress.space.build import build_space
from evocompress.space.costs import TIMED, LatencyTable
from evocompress.space.space import SearchSpace


class Backend(Protocol):
    """Where the work of a run is done that takes long."""

    def executor(self, context: RunContext, live: LiveModel, admit: Admit) -> Executor:
        """What answers the searcher's requests; `admit` is told of every worker."""

    def blocks(self, context: RunContext) -> MakeBlocks:
        """What makes the blocks of the level library."""

    def table(self, context: RunContext) -> MeasureTable:
        """What measures the latency table."""

    def healing(self, context: RunContext) -> HealEach:
        """What heals the last candidates for a short time."""


class Local:
    """The work of a run in this process."""

    def executor(self, context: RunContext, live: LiveModel, admit: Admit) -> Executor:
        """One proxy, on the model of the run itself."""
        return LocalExecutor(context.proxy(live), context.estimates(live))

    def blocks(self, context: RunContext) -> MakeBlocks:
        """One block after the other."""
        return make_blocks

    def table(self, context: RunContext) -> MeasureTable:
        """On the device of the run's model."""
        return measure_here

    def healing(self, context: RunContext) -> HealEach:
        """One candidate after the other."""
        return partial(heal_each, context.config, context.reporter)


@dataclass(frozen=True)
class RunContext:
    """A run's configuration and what it stands for; costly parts are made on first use.

    Attributes:
        config: The run's configuration.
        folder: The run's folder; it need not exist before something is written.
        reporter: Told about slow steps.
        finished: Whether the search is over, after which no latency table is measured.
        backend: Where candidates are evaluated, blocks of the library made, latencies measured.
    """

    config: RunConfig
    folder: RunFolder
    reporter: Reporter
    finished: bool = False
    backend: Backend = Local()

    def with_parts(self, **parts: Any) -> Self:
        """This one, with costly parts that are there already: ``loaded``, ``library``, ..."""
        self.__dict__.update(parts)
        return self

    @cached_property
    def loaded(self) -> LoadedModel:
        """The dense model."""
        threads = threads_of(self.config)
        if threads:
            torch.set_num_threads(threads)
        model = self.config.model
        with self.reporter.stage(f"load {model.source}"):
            found = load_as(model)
        if found.widened is not None and not self.finished:
            name = str(found.widened).removeprefix("torch.")
            self.reporter.say(
                f"this processor is slow at {name}: everything is computed in "
                f"float32, and written in {name}; model.dtype={name} computes in that"
            )
        return found

    @cached_property
    def units(self) -> UnitTree:
        """Every unit of the model, in tree order."""
        return every_unit(self.loaded.family, self.loaded.model)

    @cached_property
    def space(self) -> SearchSpace:
        """The search space with its costs and budget."""
        return self._fitted(self.config.space, self.form, self.latency_table)

    @cached_property
    def untimed_space(self) -> SearchSpace:
        """The same units and levels without a latency table, which takes long to measure."""
        if not self.timed:
            return self.space
        return self._fitted(unbounded(self.config).space, self.form, UNMEASURED)

    def _fitted(
        self, config: SpaceConfig, form: str | None, table: LatencyTable | None
    ) -> SearchSpace:
        """The space of the candidates that can be written in a format."""
        check_known_parts(self.loaded, config)
        obstacle = None if form is None else partial(obstacle_of, form, self.loaded)
        uneven, typed = bool(config.width or config.drop), form if config.bits else None
        rules = type_rules_of(typed, self.loaded, uneven=uneven)
        architecture = self.loaded.family.architecture(self.loaded.model)
        return build_space(
            self.units,
            replace(architecture, dtype_bytes=self.loaded.stored.itemsize),
            config.model_copy(update={"fits": form}),
            adds_bias=STRUCTURED[self.config.library.width_criterion].adds_bias,
            latency=table,
            obstacle=obstacle,
            tied=rules.tied,
            untyped=rules.untyped,
            file=wanted_layout(config, self._told, form, self.loaded),
        )

    @cached_property
    def form(self) -> str | None:
        """The format of all candidates, if one is asked for; that which leaves most levels."""
        fits = self.config.space.fits
        if fits is None or fits in FORMATS:
            return fits
        check_task(fits, self.loaded.family)
        forms = PROGRAMS[fits].taken(self.config.space.bits)
        return forms[0] if len(forms) == 1 else max(forms, key=self._levels_left)

    def _levels_left(self, form: str) -> int:
        """Levels of the space that a format can express; -1 where it can express nothing."""
        unbudgeted = self.config.space.model_copy(update={"budget": {}})
        try:
            return sum(map(len, self._fitted(unbudgeted, form, None).levels))
        except ConfigError:
            return -1

    @cached_property
    def latency_table(self) -> LatencyTable | None:
        """The run's own table, or the one of this machine, measured where it is missing.

        ``None`` where neither budget nor objectives ask for a latency.

        Raises:
            RunError: A finished run has lost its own.
        """
        if not self.timed:
            return None
        if self.folder.latency.exists():
            return read_table(self.folder.latency)
        if self.finished:
            raise RunError(
                f"{self.folder.latency} is missing, which told the search all latencies: restore "
                "it, or search again with name=..."
            )
        return self.profile()

    @cached_property
    def settings(self) -> SearcherSettings:
        """The searcher's own settings, validated."""
        return searcher_settings(self.config)

    @cached_property
    def timed(self) -> bool:
        """Whether budget or objectives name a cost that only a latency table knows."""
        return not all_costs_named(self.config.space, self._told).isdisjoint(TIMED)

    @property
    def _told(self) -> Mapping[str, Any]:
        """The searcher's own settings, from the journal where it is not here any more."""
        if self._forgotten:
            settings: dict[str, Any] = read_header(self.folder.journal)["settings"]
            return settings
        return self.settings.model_dump()

    def profile(self, *, anew: bool = False) -> LatencyTable:
        """The latency table of this machine, measured where it is missing or wanted `anew`.

        With ``executor: ray`` it is measured on the cluster, and may be of another device.
        """
        loaded, config = self.loaded, self.config.latency
        with self.reporter.stage(f"latency table: {table_path(loaded, config)}") as advance:
            measured = self.backend.table(self)
            return profile(loaded, config, progress=advance, anew=anew, measured=measured)

    @cached_property
    def calibration(self) -> Calibration:
        """The calibration tokens."""
        loaded = self.loaded
        with self.reporter.stage(f"calibration data: {self.config.calibration.source}"):
            found = load_calibration(self.config.calibration, loaded)
        for line in found.notes("tokens" if loaded.family.task.reads_text else "images"):
            self.reporter.say(line)
        return found

    @cached_property
    def wanted_levels(self) -> dict[str, tuple[Level, ...]]:
        """For each unit of the space, its levels that need stored weights.

        The widths of a mixture of experts are stored for each of them.
        """
        genes = self.untimed_space.encoding
        return {
            part.name: stored
            for units, levels in zip(genes.members, genes.levels, strict=True)
            if (stored := tuple(lv for lv in levels if not (lv.dense or lv.drop or lv.cache)))
            for unit in units
            for part in self.units.experts.get(unit.name, (unit,))
        }

    @property
    def _levels_by_unit(self) -> dict[str, tuple[Level, ...]]:
        """For each unit of the space all levels of its gene."""
        genes = self.untimed_space.encoding
        pairs = zip(genes.members, genes.levels, strict=True)
        return {unit.name: levels for units, levels in pairs for unit in units}

    @property
    def _library_path(self) -> Path:
        return self.config.library.path or self.folder.library

    @cached_property
    def library(self) -> Library | None:
        """The level library, built where it is missing; ``None`` if no level needs one."""
        if not self.wanted_levels:
            return None
        order = self.library_order()
        with self.reporter.stage(f"level library: {self._library_path}") as advance:
            return build_library(
                *order,
                batch=self.config.calibration.micro_batch,
                progress=advance,
                blocks=self.backend.blocks(self),
            )

    def library_order(
        self,
    ) -> tuple[LoadedModel, dict[str, tuple[Level, ...]], Tensor, str, LibraryConfig, Path]:
        """What is to be built, as the library's functions take it."""
        levels, tokens = self.wanted_levels, self.calibration.library
        text, path = self._library_text, self._library_path
        return self.loaded, levels, tokens, text, self.config.library, path

    @property
    def _library_text(self) -> str:
        """What identifies the tokens of the library; of earlier versions' those of all parts."""
        whole, path = self.calibration.fingerprint, self._library_path
        made = read_manifest(path).recipe.calibration if (path / MANIFEST).exists() else None
        return whole if made == whole else self.calibration.library_fingerprint

    def existing_library(self) -> Library | None:
        """The library that an earlier stage made; nothing is built.

        Raises:
            LibraryError: It is missing.
        """
        if not self.wanted_levels:
            return None
        if not self._library_path.exists():
            raise LibraryError(
                f"{self._library_path}: the level library is missing; "
                "'evocompress library build' makes it"
            )
        return open_library(
            self._library_path, self.loaded, cache_mib=self.config.library.cache_mib
        )

    def proxy(self, live: LiveModel) -> Proxy:
        """The proxy on the search part of the calibration tokens.

        Candidates are fine-tuned, where the searcher has that done, on the library part.
        """
        treatments = fine_tunings(self.loaded, self.calibration.library, self.recipes)
        return proxies.make_proxy(live, self.calibration.search, self.config.proxy, treatments)

    @cached_property
    def recipes(self) -> tuple[Recipe, ...]:
        """How the searcher may have candidates fine-tuned."""
        return self.settings.recipes

    @property
    def packages(self) -> tuple[str, ...]:
        """Installed packages whose searcher, proxy and so on the run has."""
        return packages(self.config, self.loaded.family)

    def executor(self, live: LiveModel, admit: Admit = lambda machine: None) -> Executor:
        """What answers the searcher's requests; `admit` raises where a worker is not to."""
        return self.backend.executor(self, live, admit)

    def estimates(self, live: LiveModel) -> LiveEstimates:
        """What answers estimates on the search part of the calibration tokens."""
        return LiveEstimates(live, self.calibration.search, self._levels_by_unit)

    def searcher(self) -> Searcher:
        """A new searcher; its settings are checked against space and pool."""
        return make_searcher(self.config, self.space, self.loaded.tokens)

    @property
    def _forgotten(self) -> bool:
        """Whether the searcher of a finished run is not here any more, nor needed."""
        there = self.finished and self.folder.journal.exists()
        return there and self.config.search.name not in SEARCHERS

    @property
    def objectives(self) -> tuple[str, ...]:
        """The costs that span the front of a finished run: those that are named, or its axes."""
        front = self.folder.read_winner().front
        # Where the settings name none, the search took those of the budget and of the ranges.
        return costs_named(self._told, "objectives") or tuple(front.axes) if front else ()

    def header(self) -> dict[str, Any]:
        """What the values of the journal depend on."""
        circumstances = self.circumstances()
        return {
            **{key: circumstances.pop(key) for key in ("model", "calibration", "library")},
            "space": genes_digest(self.space.encoding),
            "budget": dict(self.space.budget),
            "latency": table_facts(self.latency_table) if self.latency_table else None,
            "proxy": proxies.proxy_facts(self.config.proxy),
            "searcher": self.config.search.name,
            "settings": self.settings.model_dump(mode="json"),
            "seed": self.config.seed,
            **circumstances,
        }

    def circumstances(self) -> dict[str, Any]:
        """What a value depends on beside the candidate: the same in every process of a run."""
        model = self.loaded.model
        return {
            "model": self.loaded.fingerprint,
            "calibration": self.calibration.fingerprint,
            "library": self.library.fingerprint if self.library else None,
            "device": model.device.type,
            "dtype": str(model.dtype).removeprefix("torch."),
            "kernel": model.config._attn_implementation,
            "threads": torch.get_num_threads(),
        }
