"""The output errors that a level library knows (EvoPress's baseline of dynamic programming)."""

from __future__ import annotations

from evocompress.compression.library import Library
from evocompress.compression.live_model import LiveModel
from evocompress.core.errors import LibraryError
from evocompress.core.types import DROP, Level
from evocompress.evaluation.estimates.base import Rows, Subject


def output_error(subject: Subject) -> Rows:
    """tr(D H D') / tr(W H W') of every asked unit and level, D being the change of the weight.

    H sums up the inputs on the library's own calibration tokens. Of a sub-layer it is the error
    of its output matrix, of a mixture the mean over its experts. A drop has the error 1: nothing
    is put out. No forward pass: ask for it without micro-batches.

    Returns:
        For every asked unit that the candidate keeps one value a level, in their order.

    Raises:
        LibraryError: There is no library, or it was made without measuring errors.
    """
    live, named = subject.live, subject.candidate.by_name
    # Whether blocks are dropped is not looked at.
    return {
        name: tuple(_error(live, name, level) for level in levels)
        for name, levels in subject.levels.items()
        if DROP not in (named.get(name), named.get(live.units[name].owner))
    }


def _error(live: LiveModel, unit: str, level: Level) -> float:
    if level.dense or level.drop:
        return float(level.drop)
    if not isinstance(live.library, Library):
        raise LibraryError(f"output_error: there is no level library with {level.key} of {unit}")
    if live.units[unit].active:
        experts = live.tree.experts[unit]
        return sum(_error(live, expert.name, level) for expert in experts) / len(experts)
    error = live.library.error(unit, level)
    if error is None:
        raise LibraryError(
            f"the level library at {live.library.path} has no output errors of {unit}: errors are "
            "measured where the criterion reads inner products of inputs, as sparsegpt does"
        )
    return error
