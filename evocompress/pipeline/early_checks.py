"""What can be known to be wrong before a model is loaded, which takes time and memory."""

from __future__ import annotations

from pathlib import Path

from evocompress.core.config import CalibrationConfig, RunConfig
from evocompress.core.errors import DataError, LibraryError, ModelError
from evocompress.evaluation.calibration.sources import check_present, has_fields
from evocompress.evaluation.tasks import find_tasks
from evocompress.models.checkpoints import GGUF, check_model_path
from evocompress.models.demo import DEMO_SOURCE
from evocompress.models.loading import device_named
from evocompress.pipeline.checks import check_settings
from evocompress.pipeline.known_parts import check_healed
from evocompress.pipeline.planning import outline
from evocompress.pipeline.planning.plan import context_of
from evocompress.pipeline.run_folder import RunFolder


def check_early(config: RunConfig, *, search: bool = True, folder: RunFolder | None = None) -> None:
    """Whether data and tasks are there and the settings fit the model, by its config alone.

    Without `search` a library alone is to be made. The folder may be another one than configured.
    """
    check_sources(config.calibration)
    for source in config.heal.sources(config.calibration.source):
        check_present(source, "heal.source")
    for text in config.evaluate.texts:
        check_present(text, "evaluate.texts")
    find_tasks(config.evaluate.tasks, config.evaluate.tasks_folder)
    library = config.library.path
    if library is not None and library.exists() and not library.is_dir():
        raise LibraryError(f"library.path: {library} is a file: name a folder")
    check_outline(config, search=search, folder=folder)


def check_sources(config: CalibrationConfig) -> None:
    """Whether there is what the calibration data are read from.

    Raises:
        DataError: A file, a folder or a package is missing.
    """
    check_present(config.source, "calibration.source")
    if config.heldout_source is not None:
        check_present(config.heldout_source, "calibration.heldout_source")
    sources = [config.source, config.heldout_source or config.source]
    if config.field is not None and not any(map(has_fields, sources)):
        raise DataError(
            f"calibration.field={config.field}: {' and '.join(dict.fromkeys(sources))} has no "
            "fields: unset it, or give a .jsonl, .json, .csv or .parquet file or datasets:NAME"
        )


def check_outline(
    config: RunConfig, *, search: bool = True, folder: RunFolder | None = None
) -> None:
    """Checks the settings of a run, those of the search or not, with the outline of its model.

    Raises:
        EvoCompressError: They do not fit the model.
    """
    device_named(config.model.device)
    model = config.model
    if not model.source.endswith(GGUF):
        check_model_path(Path(model.source).expanduser())
    try:
        sketch = outline(model.source, model.dtype, trust_remote_code=model.trust_remote_code)
    except ModelError:
        if model.source != DEMO_SOURCE and not Path(model.source).expanduser().exists():
            raise  # to ask the hub again would take as long again
        return  # loading it says better what is wrong with it
    if search and config.search.heal_last is not None:
        check_healed(sketch.family)
    check_settings(context_of(config, sketch, folder), search=search)
