"""Files of latency tables: where they are, and whether one may be used here."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict
from pathlib import Path

import torch

from evocompress.core.config import LatencyConfig
from evocompress.core.environment import describe
from evocompress.core.errors import ConfigError
from evocompress.core.files import cache_folder, make_folder, read_json, write_json
from evocompress.core.leftovers import clear_leftovers
from evocompress.evaluation.profile.layouts import grid
from evocompress.evaluation.profile.timing import METHOD
from evocompress.models.loading import LoadedModel
from evocompress.space.costs.latency import Conditions, LatencyTable

ANEW = "name another latency.table, or measure over it with 'evocompress profile --anew'"
ALIKE = "start the search on a node like those of its workers"
NEW_RUN = "go on under those circumstances, or begin a new run with name=..."


def circumstances(loaded: LoadedModel, config: LatencyConfig) -> Conditions:
    """Under which circumstances a table of this model is measured now."""
    model = loaded.model
    return Conditions(
        device=describe(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        threads=torch.get_num_threads() if model.device.type == "cpu" else 0,
        kernel=model.config._attn_implementation,
        torch=torch.__version__,
        model=loaded.fingerprint,
        prefill=config.prefill,
        decode=config.decode,
        method=METHOD,
    )


def table_path(loaded: LoadedModel, config: LatencyConfig) -> Path:
    """The file of the table: the configured one, or one in the cache folder.

    The latter is named by device, dtype and model, and by a hash of all circumstances, so that
    it is the right one wherever it exists.
    """
    return path_of(circumstances(loaded, config), config)


def path_of(made: Conditions, config: LatencyConfig) -> Path:
    """The file of a table that was measured under these circumstances, see `table_path`."""
    if config.table is not None:
        return config.table
    text = json.dumps(asdict(made), sort_keys=True)
    digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    device = re.sub(r"[^a-z0-9]+", "-", made.device.lower()).strip("-")
    return cache_folder() / "latency" / f"{device}-{made.dtype}-{made.model}-{digest}.json"


def write_table(path: Path, table: LatencyTable) -> None:
    """Write a table, whole or not at all; its folder is made.

    Raises:
        RunError: The disk is full.
    """
    make_folder(path.parent, "latency.table")
    clear_leftovers(path.parent)
    write_json(path, table.to_json())


def read_table(path: Path) -> LatencyTable:
    """Read a table.

    Raises:
        RunError: The file is missing or is not JSON.
        ConfigError: It is no latency table.
    """
    return LatencyTable.from_json(read_json(path), str(path))


def check_table(
    table: LatencyTable,
    loaded: LoadedModel,
    config: LatencyConfig,
    path: Path,
    *,
    remedy: str | None = None,
) -> None:
    """Whether a table tells the latency of a model here.

    Args:
        table: The table.
        loaded: The model, dense.
        config: Batch and lengths that are wanted.
        path: The table's file, for the message.
        remedy: What the user can do; ``None`` where the table may be replaced or forced.

    Raises:
        ConfigError: It was measured under other circumstances and ``latency.force`` is not set,
            or it is of a model with other widths, which nothing can mend.
    """
    widths = grid(loaded.family.architecture(loaded.model))
    full = (widths.attention[-1], widths.mlp[-1])
    if any(phase.full != full for phase in (table.prefill, table.decode) if phase):
        raise ConfigError(
            f"the latency table {path} is of a model of other widths: {remedy or ANEW}"
        )
    here, made = asdict(circumstances(loaded, config)), asdict(table.made)
    differing = [f"{key} {made[key]}, here {here[key]}" for key in here if made[key] != here[key]]
    if differing and not config.force:
        raise ConfigError(
            f"the latency table {path} was measured for another case ({'; '.join(differing)}): "
            f"{remedy or f'{ANEW}, or set latency.force=true'}"
        )
