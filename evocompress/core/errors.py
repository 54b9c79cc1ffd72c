"""Errors whose message is meant for the user: one line saying what, where and what to do."""

from __future__ import annotations

from evocompress.core.foreign_text import abridged, printable, shortened


class EvoCompressError(Exception):
    """A problem the user can mend. The command line prints it without a traceback.

    Examples:
        >>> issubclass(RunError, EvoCompressError)
        True
    """


class ConfigError(EvoCompressError):
    """A configuration value is missing, unknown or out of range.

    Examples:
        >>> from evocompress.core.config_file import load_config
        >>> load_config("nowhere.yaml")
        Traceback (most recent call last):
        evocompress.core.errors.ConfigError: nowhere.yaml: no such configuration ...
    """


class ModelError(EvoCompressError):
    """A model cannot be loaded or is of a kind that is not supported.

    Examples:
        >>> from evocompress.models.loading import load
        >>> load("/nowhere")
        Traceback (most recent call last):
        evocompress.core.errors.ModelError: no model at '/nowhere': there is no ...
    """


class DataError(EvoCompressError):
    """Calibration data are missing, unreadable or too few.

    Examples:
        >>> from evocompress.evaluation.calibration.sources import check_present
        >>> check_present("nowhere.txt", "calibration.source")
        Traceback (most recent call last):
        evocompress.core.errors.DataError: calibration.source: nowhere.txt does ...
    """


class LibraryError(EvoCompressError):
    """A level library is missing, damaged, or was made for something else.

    Examples:
        >>> import pathlib
        >>> from evocompress.compression.library.manifest import read_manifest
        >>> read_manifest(pathlib.Path("nowhere"))
        Traceback (most recent call last):
        evocompress.core.errors.LibraryError: there is no level library at nowhere: build it first
    """


class BudgetError(EvoCompressError):
    """No candidate of the search space meets the budget.

    Examples:
        >>> from evocompress.testing.examples import space
        >>> space(body_params=0.01)
        Traceback (most recent call last):
        evocompress.core.errors.BudgetError: space.budget.body_params: 1109.8 ...
    """


class RunError(EvoCompressError):
    """A run folder cannot be used as asked.

    Examples:
        >>> from evocompress.api import materialize
        >>> materialize("nowhere")
        Traceback (most recent call last):
        evocompress.core.errors.RunError: nowhere is not a run folder: it has no ...
    """


class HealingDiverged(RunError):
    """The loss of a healing, or the KL that it is judged by, is not finite.

    Examples:
        >>> issubclass(HealingDiverged, RunError)
        True
    """


class ExportError(EvoCompressError):
    """A candidate cannot be written in the format asked for.

    Examples:
        >>> from evocompress.export import check_format
        >>> check_format("onnx")
        Traceback (most recent call last):
        evocompress.core.errors.ExportError: unknown format 'onnx': choose one of ...
    """


def one_line(error: BaseException) -> str:
    """The message of an exception on one line, with its type where it is not ours.

    It may quote what comes from elsewhere, so it is harmless on a terminal and not too long.
    """
    text = printable(" ".join(str(error).split()), "")
    if isinstance(error, EvoCompressError):
        return shortened(text)
    text = shortened(abridged(text))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
