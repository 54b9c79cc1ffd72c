"""What a run's configuration names: its searcher, executor, formats, criteria and sizes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import BaseModel

from evocompress.compression.criteria import CRITERIA, STRUCTURED
from evocompress.compression.quantization.ggml import PACKAGES
from evocompress.core.config import CalibrationConfig, RunConfig, SearchConfig, SpaceConfig
from evocompress.core.config_file import nearest, validate
from evocompress.core.env_vars import env_vars_of
from evocompress.core.errors import ConfigError
from evocompress.core.requests import Pool
from evocompress.core.space_config import FITTING
from evocompress.core.storage import GGUF
from evocompress.evaluation.proxies import PROXIES, Metric
from evocompress.export import FORMATS, PROGRAMS, check_program
from evocompress.export.formats import file_layout_of
from evocompress.models.families import FAMILIES, Family, name_of
from evocompress.models.loading import LoadedModel
from evocompress.search import SEARCHERS
from evocompress.search.base import Problem, Searcher, SearcherSettings
from evocompress.search.first_result import check_tokens
from evocompress.space.costs import COSTS, WRITTEN, FileLayout
from evocompress.space.space import SearchSpace

THREADS_A_CORE = 4
"""The most threads that a run may have for each core of the machine."""

EXECUTORS = ("local", "ray")
"""Where the work of a run can be done."""


def pool(config: CalibrationConfig, tokens: int | None = None) -> Pool:
    """The micro-batches that the search part is cut into; the last may be smaller.

    `tokens` are those of a sequence where the model and not the configuration says so.
    """
    full, rest = divmod(config.search_sequences, config.micro_batch)
    sizes = [config.micro_batch] * full + [rest] * bool(rest)
    return Pool(tuple(size * (tokens or config.length) for size in sizes))


def threads_of(config: RunConfig) -> int | None:
    """CPU threads of torch; with Ray those of a worker, so that all compute alike."""
    if config.threads or config.executor != "ray":
        return config.threads
    return max(1, int(config.ray.cpus))


def make_searcher(config: RunConfig, space: SearchSpace, tokens: int | None = None) -> Searcher:
    """A new searcher of a run's settings.

    Raises:
        EvoCompressError: They do not fit the space or the calibration pool.
    """
    problem, settings = _problem(config, space, tokens), searcher_settings(config)
    return SEARCHERS[config.search.name](problem, settings, np.random.default_rng(config.seed))


def _problem(config: RunConfig, space: SearchSpace, tokens: int | None) -> Problem:
    return Problem(space, pool(config.calibration, tokens), config.search.tokens)


def check_search(
    config: RunConfig, space: SearchSpace, tokens: int | None = None
) -> tuple[str, ...]:
    """Whether a run's settings fit its space and the pool, and its tokens last for a result.

    Returns:
        The costs that span the front which is searched; none where it is for one candidate.
    """
    problem, settings = _problem(config, space, tokens), searcher_settings(config)
    factory = SEARCHERS[config.search.name]
    searcher = factory(problem, settings, np.random.default_rng(config.seed))
    check_tokens(factory, problem, settings, config.seed)
    return tuple(searcher.objectives)


def searcher_settings(config: RunConfig) -> SearcherSettings:
    """The searcher's own settings, validated by its class.

    Raises:
        ConfigError: There is no such searcher, or a setting is wrong.
    """
    name = config.search.name
    SEARCHERS.check(name, "search.name")
    settings = SEARCHERS[name].Settings
    known = {*SearchConfig.model_fields, *settings.model_fields}
    for key in config.search.settings.keys() - known:
        raise ConfigError(f"search ({name}): unknown key 'search.{key}': {nearest(key, known)}")
    return validate(settings, config.search.settings, f"search ({name})")


def check_names(config: RunConfig) -> None:
    """Whether all that the configuration names exists, before anything slow is begun."""
    settings = searcher_settings(config)
    check_place(config)
    _check_costs(config, settings)
    _check_fits(config.space.fits)
    PROXIES.check(config.proxy.kind, "proxy.kind")
    CRITERIA.check(config.library.criterion, "library.criterion")
    STRUCTURED.check(config.library.width_criterion, "library.width_criterion")


def check_place(config: RunConfig) -> None:
    """Whether work can be done where the configuration says, as far as is known at once.

    Raises:
        ConfigError: There is no such executor, or a setting of it is wrong.
    """
    if config.executor not in EXECUTORS:
        known = nearest(config.executor, EXECUTORS)
        raise ConfigError(f"executor: unknown executor '{config.executor}': {known}")
    _check_threads(config)
    if config.executor == "ray":
        env_vars_of(config.ray)


def with_objects(
    config: RunConfig, searcher: type[Searcher] | None, proxy: type[Metric] | None
) -> RunConfig:
    """The configuration with objects that are not installed in the place of their names.

    Raises:
        ConfigError: An object cannot serve, or the configuration names another one.
    """
    changes: dict[str, Any] = {}
    if searcher is not None:
        changes["search"] = _naming(config.search, "search.name", SEARCHERS.give(searcher))
    if proxy is not None:
        changes["proxy"] = _naming(config.proxy, "proxy.kind", PROXIES.give(proxy))
    return config.model_copy(update=changes)


def _naming(section: BaseModel, key: str, name: str) -> BaseModel:
    """A section of the configuration that names an object."""
    field = key.rpartition(".")[2]
    known = getattr(section, field)
    if field in section.model_fields_set and known != name:
        raise ConfigError(f"{key}={known}, but {name} is given: leave out one of them")
    return section.model_copy(update={field: name})


def packages(config: RunConfig, family: Family) -> tuple[str, ...]:
    """The installed packages, other than this one, that have what a run names."""
    found = (
        SEARCHERS.packages(config.search.name),
        PROXIES.packages(config.proxy.kind),
        CRITERIA.packages(config.library.criterion),
        STRUCTURED.packages(config.library.width_criterion),
        FORMATS.packages(config.space.fits),
        FAMILIES.packages(name_of(family)),
        PACKAGES if config.space.bits and config.space.bits.lane == GGUF else frozenset(),
    )
    return tuple(sorted(set().union(*found)))


def _check_threads(config: RunConfig) -> None:
    """Refuses threads that only get into each other's way; Ray's are those of other machines."""
    cores = os.cpu_count() or 1
    most = THREADS_A_CORE * cores
    if config.executor != "ray" and config.threads is not None and config.threads > most:
        raise ConfigError(
            f"threads: {config.threads} is more than {most}, which is {THREADS_A_CORE} for each of "
            f"the {cores} cores of this machine: lower it, or leave it out"
        )


def _check_fits(fits: str | None) -> None:
    """Refuses what is neither a format nor a program, or a program that is too old."""
    if fits is None:
        return
    if fits not in FORMATS and fits not in PROGRAMS:
        known = nearest(fits, (*FORMATS, *PROGRAMS))
        raise ConfigError(f"space.fits: unknown format '{fits}': {known}")
    if fits in PROGRAMS:
        check_program(fits)
    forms = PROGRAMS[fits].preferred if fits in PROGRAMS else (fits,)
    if len(forms) == 1:
        FORMATS[forms[0]].check_package()


def costs_named(settings: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """The costs that a setting of a searcher names; of another's own ``range``, say, none."""
    value = settings.get(key)
    return tuple(map(str, value)) if isinstance(value, tuple | list | Mapping) else ()


def all_costs_named(space: SpaceConfig, told: Mapping[str, Any]) -> set[str]:
    """The costs that a budget, or the settings of a searcher, are about."""
    return {*space.budget, *costs_named(told, "objectives"), *costs_named(told, "range")}


def wanted_layout(
    space: SpaceConfig, told: Mapping[str, Any], form: str | None, loaded: LoadedModel
) -> FileLayout | None:
    """What files are made of, where budget or objectives name their size.

    They are of the format `form`, or of the one that holds the space's types.

    Raises:
        ConfigError: The size of such files is not foretold.
    """
    if all_costs_named(space, told).isdisjoint(WRITTEN):
        return None
    name = form or ("hf" if space.bits is None else FITTING[space.bits.lane][0])
    uneven = space.drop is not None or (space.width is not None and not space.width.uniform)
    return file_layout_of(name, loaded, uneven=uneven)


def _check_costs(config: RunConfig, settings: SearcherSettings) -> None:
    """Refuses costs that there are of no model."""
    told = settings.model_dump()
    named = {
        "space.budget": config.space.budget,
        "search.objectives": costs_named(told, "objectives"),
        "search.range": costs_named(told, "range"),
    }
    for key, costs in named.items():
        for name in costs:
            if name not in COSTS:
                raise ConfigError(f"{key}: unknown cost '{name}'; {nearest(name, COSTS)}")
