"""Errors whose message is meant for the user: one line saying what, where and what to do."""

from __future__ import annotations

from evocompress.core.foreign_text import abridged, printable, shortened


class EvoCompressError(Exception):
    """A problem the user can mend. The command line prints it without a traceback."""


class ConfigError(EvoCompressError):
    """A configuration value is missing, unknown or out of range."""


class ModelError(EvoCompressError):
    """A model cannot be loaded or is of a kind that is not supported."""


class DataError(EvoCompressError):
    """Calibration data are missing, unreadable or too few."""


class LibraryError(EvoCompressError):
    """A level library is missing, damaged, or was made for something else."""


class BudgetError(EvoCompressError):
    """No candidate of the search space meets the budget."""


class RunError(EvoCompressError):
    """A run folder cannot be used as asked."""


class ExportError(EvoCompressError):
    """A candidate cannot be written in the format asked for."""


def one_line(error: BaseException) -> str:
    """The message of an exception on one line, with its type where it is not ours.

    It may quote what comes from elsewhere, so it is harmless on a terminal and not too long.
    """
    text = printable(" ".join(str(error).split()), "")
    if isinstance(error, EvoCompressError):
        return shortened(text)
    text = shortened(abridged(text))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
