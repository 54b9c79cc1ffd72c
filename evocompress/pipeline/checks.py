"""Whether settings, space, data and library of a run fit each other and the model."""

from __future__ import annotations

from evocompress.compression.criteria import STRUCTURED
from evocompress.compression.library import check_library
from evocompress.core.errors import ConfigError
from evocompress.evaluation.calibration.calibration import check_calibration
from evocompress.evaluation.heldout import check_lengths
from evocompress.evaluation.profile import check_lengths as check_timed_lengths
from evocompress.evaluation.profile import check_table, path_of
from evocompress.evaluation.profile.tables import ALIKE, NEW_RUN
from evocompress.evaluation.proxies import check_proxy
from evocompress.models.loading import require_next_token
from evocompress.pipeline.context import Workbench
from evocompress.pipeline.resolve import check_search, searcher_settings
from evocompress.pipeline.unmeasured_latency import unbounded


def check(bench: Workbench) -> None:
    """Whether data, settings, space and library fit; nothing is written in the run's folder.

    A latency table that is missing is measured last: it takes longest.

    Raises:
        EvoCompressError: Something does not.
    """
    check_settings(bench)
    if bench.wanted_levels:
        check_library(*bench.library_order(), batch=bench.config.calibration.micro_batch)
    else:
        bench.calibration  # noqa: B018  (may refuse the data)
    if bench.timed:
        _check_latency(bench)


def check_settings(bench: Workbench, *, search: bool = True) -> None:
    """Whether settings and space fit the model, of which an outline is enough.

    Args:
        bench: Of the run, perhaps with an outline of the model.
        search: Whether the settings of the search count: a library needs none.

    Raises:
        EvoCompressError: Something does not.
    """
    if bench.config.model.device_memory is not None:
        _check_streamed(bench)
    architecture = bench.loaded.family.architecture(bench.loaded.model)
    check_calibration(bench.config.calibration, bench.loaded)
    check_proxy(bench.config.proxy.kind, bench.loaded)
    check_lengths(bench.config.evaluate, architecture)
    if bench.timed:
        check_timed_lengths(bench.config.latency, architecture)
    if search:
        check_search(unbounded(bench.config), bench.untimed_space, bench.loaded.tokens)
    _check_next_token(bench)


def _check_next_token(bench: Workbench) -> None:
    """Refuses what needs the loss of the next token, of a model that has none."""
    name = bench.config.library.width_criterion
    if searcher_settings(bench.config).needs_next_token:
        require_next_token(bench.loaded, f"search.name={bench.config.search.name}")
    if bench.config.space.width and "gradients" in STRUCTURED[name].needs:
        require_next_token(bench.loaded, f"library.width_criterion={name}")


def _check_streamed(bench: Workbench) -> None:
    """Refuses what needs the whole model on the device at once."""
    blocked = None
    if bench.timed:
        blocked = "a latency in budget or objectives"
    elif searcher_settings(bench.config).recipes:
        blocked = f"search.name={bench.config.search.name}, which fine-tunes candidates,"
    if blocked:
        raise ConfigError(
            f"{blocked} needs the whole model on the device: unset model.device_memory"
        )


def _check_latency(bench: Workbench) -> None:
    """Whether the run's latency table is of this machine, and the bounds within it."""
    table, config, own = bench.latency_table, bench.config.latency, bench.folder.latency
    if table and own.exists():
        check_table(table, bench.loaded, config, own, remedy=NEW_RUN)
    elif table:
        # Workers may have measured it on another device than this process has.
        path = path_of(table.made, config)
        check_table(table, bench.loaded, config, path, remedy=ALIKE)
    bench.searcher()
