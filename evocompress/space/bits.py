"""In which types matrices may be stored, beside their zeros, and keys and values cached."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product

from evocompress.core.architecture import Architecture
from evocompress.core.errors import ConfigError
from evocompress.core.precision_config import UNCHANGED, BitsSpace, CacheSpace
from evocompress.core.storage import CACHES, storage_type
from evocompress.core.types import DENSE, Level, Unit
from evocompress.core.units import UnitTree
from evocompress.core.widths import dense_widths
from evocompress.space.levels import matching_units

LevelChoice = tuple[Level, ...]


def stored_levels(
    units: Sequence[Unit],
    architecture: Architecture,
    config: BitsSpace,
    narrow: Mapping[str, LevelChoice],
    sparse: Mapping[str, LevelChoice],
    targets: Mapping[str, int],
) -> dict[str, tuple[LevelChoice, int]]:
    """The levels of every matrix in scope, from most bytes to fewest, and the one to begin with.

    A matrix with levels of sparsity has each of them in each type. It begins with its target, in
    the type of most bytes. Types that do not fit a matrix, at every width that it may have, are no
    levels of it.

    Args:
        units: All units of the model.
        architecture: The model's dimensions.
        config: The types.
        narrow: The narrow levels of sub-layers.
        sparse: The levels of sparsity of matrices.
        targets: The index of the target among these.

    Raises:
        ConfigError: A glob matches no matrix, the model lacks what is in scope, no type fits a
            matrix, or zeros would not stay zero.
    """
    tree = UnitTree(units)
    found = {}
    for unit in _in_scope(units, architecture, config):
        widths = narrow.get(tree.sublayer(unit).name, ())
        types = _fitting(unit, config, _row_lengths(unit, architecture, widths))
        zeros = sparse.get(unit.name, (DENSE,))
        _check_zeros(unit, zeros, types)
        levels = [
            replace(level, bits="" if name == UNCHANGED else name)
            for name, level in product(types, zeros)
        ]
        found[unit.name] = (tuple(levels), targets.get(unit.name, 0))
    return found


def _in_scope(
    units: Sequence[Unit], architecture: Architecture, config: BitsSpace
) -> Iterator[Unit]:
    """The matched matrices of the blocks, and those outside that are asked for."""
    matrices = [unit for unit in units if unit.kind == "matrix"]
    if "matrices" in config.scope:
        matched = matching_units(matrices, config.match, "space.bits.match")
        yield from (unit for unit in matrices if unit.name in matched)
    outside = {unit.role: unit for unit in units if unit.kind == "outer"}
    words = {
        "embedding" if word == "embeddings" or architecture.tied else word: word
        for word in config.scope
        if word != "matrices"
    }
    for role, word in words.items():
        if role in outside:
            yield outside[role]
        elif architecture.causal:
            raise ConfigError(
                f"space.bits.scope: this model has no {role} that is a plain matrix: leave "
                f"'{word}' out"
            )
        else:
            raise ConfigError(
                f"space.bits.scope: '{word}' is for models that tell the next token and whose "
                "blocks are known, and this is none: leave it out"
            )


def _row_lengths(unit: Unit, architecture: Architecture, widths: LevelChoice) -> list[int]:
    """The inputs that a matrix may have."""
    assert unit.shape is not None
    dense = dense_widths(architecture, unit.block)
    return [unit.shape[1], *(dense.at(level).shape(unit, dense)[1] for level in widths)]


def _fitting(unit: Unit, config: BitsSpace, lengths: Sequence[int]) -> list[str]:
    """The types into whose blocks rows of all lengths can be cut."""
    kinds = {name: None if name == UNCHANGED else storage_type(name) for name in config.types}
    if unit.kind == "outer" or unit.positions is not None:
        kinds = {name: kind for name, kind in kinds.items() if not (kind and kind.rounds_inputs)}
    if not kinds:
        raise ConfigError(
            f"space.bits.types: w8a8 rounds what linear layers of the blocks read, token by token, "
            f"and '{unit.name}' is none: give another type beside it, or 'dense'"
        )
    found = [name for name, kind in kinds.items() if not kind or all(map(kind.fits, lengths))]
    if found:
        return found
    blocks = {name: kind.block for name, kind in kinds.items() if kind}
    least = min(blocks.values())
    odd = next(length for length in lengths if length % least)
    outer = "leave it out of scope" if unit.kind == "outer" else "leave the matrix out of match"
    raise ConfigError(
        f"space.bits.types: '{unit.name}' can have {odd} inputs, no multiple of {least}, which the "
        "smallest blocks of these types take; give another type, or 'dense', choose other widths, "
        f"or {outer}"
    )


def _check_zeros(unit: Unit, zeros: LevelChoice, types: Sequence[str]) -> None:
    """Refuse types in which a zero becomes another number."""
    if not any(level.zeros for level in zeros):
        return
    inexact = [name for name in types if name != UNCHANGED and not storage_type(name).has_zero]
    if inexact:
        raise ConfigError(
            f"space.bits.types: zeros of '{unit.name}' would not stay zero in {inexact[0]}; give "
            "types that have a zero, as q4_0, q8_0 or w4g64, or leave out 'sparsity'"
        )


def cache_levels(
    units: Sequence[Unit], architecture: Architecture, config: CacheSpace
) -> dict[str, LevelChoice]:
    """The levels of the caches of the matched attentions, from most bytes to fewest.

    Raises:
        ConfigError: A glob matches no attention whose cache can be rounded, or heads do not fit
            into the blocks of a type.
    """
    attentions = {unit.owner: unit for unit in units if unit.kind == "cache"}
    named = [unit for unit in units if unit.name in attentions]
    matched = matching_units(named, config.match, "space.cache.match")
    levels = tuple(Level(cache=name if name != UNCHANGED else "") for name in config.types)
    blocks = {lv.cache: CACHES[lv.cache].block for lv in levels if lv.cache}
    for unit in (unit for unit in named if unit.name in matched):
        width = (architecture.head_dims or (architecture.head_dim,) * (unit.block + 1))[unit.block]
        if wrong := next((name for name, block in blocks.items() if width % block), ""):
            raise ConfigError(
                f"space.cache.types: '{wrong}' has blocks of {blocks[wrong]} values, into which "
                f"the heads of '{unit.name}', of {width}, cannot be cut; leave space.cache out"
            )
    return {attentions[name].name: levels for name in matched}
