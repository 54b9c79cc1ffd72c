"""A finished run, and whether what it was searched with is still what is loaded now."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from evocompress.compression.library import Library
from evocompress.core.config_file import changed
from evocompress.core.errors import RunError
from evocompress.core.progress import Reporter, Silent
from evocompress.evaluation.calibration.calibration import Calibration, load_calibration
from evocompress.export import read_record
from evocompress.pipeline.context import RunContext
from evocompress.pipeline.journal import read_header
from evocompress.pipeline.run_folder import MAY_DIFFER, RunFolder, changed_keys

HELDOUT = ("calibration.heldout_source", "calibration.heldout_sequences")
"""What an evaluation may have otherwise than the run: neither library nor search has seen it."""


def finished(
    path: Path | str,
    reporter: Reporter | None,
    overrides: Sequence[str] = (),
    may_change: tuple[str, ...] = (),
) -> RunContext:
    """The context of a run that has a winner, in whose folder nothing is written yet.

    `overrides` may only be about settings whose names begin as `may_change` says.

    Raises:
        RunError: It has none, or the winner was searched with other settings.
    """
    folder = RunFolder(Path(path))
    before = folder.config()
    config = changed(before, overrides)
    if not folder.winner.exists():
        raise RunError(f"{path} has no winner yet: finish it with 'evocompress search --resume'")
    old, new = (each.model_dump(mode="json") for each in (before, config))
    known = (*may_change, *MAY_DIFFER, "threads")
    wrong = [key for key in changed_keys(old, new) if not key.startswith(known)]
    if wrong:
        raise RunError(
            f"{wrong[0]} decided the search of {path} and cannot be another one now: change "
            f"{', '.join(may_change) or 'nothing'} only, or search again with name=..."
        )
    return RunContext(config, folder, reporter or Silent(), finished=True)


class Unchanged:
    """Compares what a finished run loads with what the header of its journal says."""

    def __init__(self, context: RunContext) -> None:
        self._context = context

    @cached_property
    def _header(self) -> Any:
        return read_header(self._context.folder.journal)

    def check_model(self) -> None:
        """Refuses another model than was searched."""
        loaded = self._context.loaded
        dtype = str(loaded.model.dtype).removeprefix("torch.")
        searched = self._header.get("dtype")
        how = f", computed in {dtype} and not {searched}" if searched not in (None, dtype) else ""
        self._compare("model", loaded.fingerprint, f"the model {loaded.source}{how}")

    def check_library(self, library: Library | None) -> None:
        """Refuses another level library than the search had."""
        if library is not None:
            self._compare("library", library.fingerprint, f"the level library {library.path}")

    def check_checkpoint(self, path: Path) -> str:
        """The id of a checkpoint's candidate, refusing one that another model or library made.

        Raises:
            RunError: It is from another model or level library than was searched with.
            ExportError: It has no record, or a damaged one.
        """
        record = read_record(path)
        made = {"model": record.model_fingerprint, "library": record.library_fingerprint}
        for key, fingerprint in made.items():
            if fingerprint not in (None, self._header.get(key)):
                raise RunError(
                    f"{path} was made from another {key} than {self._context.folder.path} was "
                    f"searched with (fingerprint {fingerprint} instead of "
                    f"{self._header.get(key)}): remove it, and write the run's own with "
                    "'evocompress materialize'"
                )
        return record.id

    def check_text(self) -> Calibration:
        """The calibration data, refusing others than the search had.

        Raises:
            RunError: They are others.
        """
        context = self._context
        own = context.folder.config().calibration
        calibration = context.calibration
        searched = calibration
        if own != context.config.calibration:
            searched = load_calibration(own, context.loaded)
        what = f"the text of calibration.source={own.source} or of the held-out part"
        self._compare("calibration", searched.fingerprint, what)
        return calibration

    def _compare(self, key: str, now: str, what: str) -> None:
        then = self._header.get(key)
        if then != now:
            raise RunError(
                f"{what} is not what {self._context.folder.path} was searched with (fingerprint "
                f"{now} instead of {then}): restore it, or search again with name=..."
            )
