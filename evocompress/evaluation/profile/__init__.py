"""Latency tables: measured once for a model, device, dtype, batch and length, then reused."""

from __future__ import annotations

from collections.abc import Callable

from evocompress.compression.live_model import LiveModel
from evocompress.core.config import LatencyConfig
from evocompress.core.errors import ConfigError
from evocompress.core.progress import Advance
from evocompress.evaluation.profile.first_items import FirstItems
from evocompress.evaluation.profile.measure import check_timed_lengths, measure
from evocompress.evaluation.profile.rows import table_rows
from evocompress.evaluation.profile.tables import (
    check_table,
    path_of,
    read_table,
    table_path,
    write_table,
)
from evocompress.models.families.uneven import is_compressed
from evocompress.models.loading import LoadedModel
from evocompress.space.costs.latency import LatencyTable

__all__ = [
    "check_timed_lengths",
    "check_table",
    "MeasureTable",
    "measure",
    "measure_here",
    "path_of",
    "profile",
    "read_table",
    "table_path",
    "table_rows",
    "write_table",
]

MeasureTable = Callable[[LoadedModel, LatencyConfig, Advance], LatencyTable]
"""Measures the table of a model, here or elsewhere."""


def measure_here(loaded: LoadedModel, config: LatencyConfig, progress: Advance) -> LatencyTable:
    """The table of a model on the device that it is on in this process."""
    with LiveModel(loaded, FirstItems(loaded)) as live:
        return measure(loaded, config, live, progress=progress)


def profile(
    loaded: LoadedModel,
    config: LatencyConfig,
    *,
    progress: Advance,
    anew: bool = False,
    measured: MeasureTable = measure_here,
) -> LatencyTable:
    """The latency table of a model on its device: opened where there is one, else measured.

    Args:
        loaded: The model, dense.
        config: Batch, lengths, repeats, and perhaps the file.
        progress: Told how far the measuring is.
        anew: Measure even where there is a table, which is replaced.
        measured: Who measures it, perhaps on another device: the file is named after that.

    Raises:
        ConfigError: The table was measured under other circumstances
            (`evocompress.space.costs.latency.Conditions`), the lengths do not fit the model, or
            it is a mixture of experts or has blocks that share matrices.
        RunError: The file is damaged, or the disk is full.
    """
    family = loaded.family
    if "attention" not in family.sublayers:
        raise ConfigError(
            f"latency: {loaded.source} is a {family.model_type} model, whose layers differ in "
            "size, so no table by widths tells their time: give other costs, such as flops"
        )
    if is_compressed(loaded.model.config.model_type):
        raise ConfigError(
            f"latency: {loaded.source} is a compressed checkpoint whose layers differ in width "
            "already, so no table by widths tells their time: give other costs, such as flops"
        )
    if family.mixture is not None:
        raise ConfigError(
            f"the latency of {family.model_type} models cannot be tabled, because that of a "
            "mixture of experts depends on the routing; use flops, active_params or weight_bytes"
        )
    if family.sharing:
        raise ConfigError(
            f"the latency of {family.model_type} models cannot be tabled, because several blocks "
            "run what only the first of them has by widths; use flops or weight_bytes"
        )
    path = table_path(loaded, config)
    if path.exists() and not anew:
        table = read_table(path)
        check_table(table, loaded, config, path)
        return table
    check_timed_lengths(config, family.architecture(loaded.model))
    table = measured(loaded, config, progress)
    write_table(path_of(table.made, config), table)
    return table
