"""The configuration of bits: of stored weights, and of cached keys and values."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from evocompress.core.errors import ConfigError
from evocompress.core.fields import Globs, Strict
from evocompress.core.storage import CACHES, HALVES, STORAGE, Lane, StorageType, storage_type

Scope = Literal["matrices", "embeddings", "head"]
"""What of a model may have types of its own."""

UNCHANGED = "dense"
"""The type of weights that are stored as in the model."""


class BitsSpace(Strict):
    """How precisely matrices may be stored, after they are narrowed and given zeros.

    Attributes:
        types: Names from `evocompress.core.storage.STORAGE`, all of llama.cpp's or all of
            groups, in any order; ``dense`` leaves a matrix in the model's own type.
        match: Globs over names of matrix units.
        scope: ``matrices`` of the blocks, the input ``embeddings``, the output ``head``; one that
            is the embedding is one choice with it, which either word gives.

    Examples:
        >>> BitsSpace(types=["w2g64", "w4g64"]).types
        ('w4g64', 'w2g64')
    """

    types: Annotated[tuple[str, ...], Field(min_length=1, max_length=100)]
    match: Annotated[Globs, Field(min_length=1)] = ("*",)
    scope: Annotated[tuple[Scope, ...], Field(min_length=1)] = ("matrices",)

    @model_validator(mode="after")
    def _matches_something(self) -> BitsSpace:
        if self.match != ("*",) and "matrices" not in self.scope:
            raise ValueError("match is about the blocks' matrices, which are not in scope")
        return self

    @property
    def lane(self) -> Lane:
        """Whose types they are."""
        return self.coarser[0].lane

    @property
    def coarser(self) -> tuple[StorageType, ...]:
        """The types beside the model's own."""
        return tuple(storage_type(name) for name in self.types if name != UNCHANGED)

    @field_validator("types")
    @classmethod
    def _of_one_lane(cls, types: tuple[str, ...]) -> tuple[str, ...]:
        """Those that there are, from most to fewest bits."""
        try:
            known = [storage_type(name) for name in types if name != UNCHANGED]
        except ConfigError as error:
            raise ValueError(str(error)) from error
        if not known:
            raise ValueError(f"'{UNCHANGED}' alone changes nothing: give a type")
        lanes = {kind.lane: kind.name for kind in known}
        if len(lanes) > 1:
            mixed = " and ".join(lanes.values())
            raise ValueError(
                f"{mixed} are not stored in one file: give llama.cpp's types or groups (w4g64)"
            )
        halves = [name for name in types if name in HALVES]
        if halves and UNCHANGED in types:
            raise ValueError(
                f"'{halves[0]}' and '{UNCHANGED}', the model's own type, hardly differ: give one"
            )
        known.sort(key=lambda kind: (kind.bits_per_weight, kind.name), reverse=True)
        named = tuple(dict.fromkeys(kind.name for kind in known))
        return (UNCHANGED, *named) if UNCHANGED in types else named


class CacheSpace(Strict):
    """How precisely the keys and values of an attention may be cached.

    Attributes:
        types: Names from `evocompress.core.storage.CACHES`, all of llama.cpp's, of which all
            attentions have the same one, or all of torch's (``kv4``); ``dense`` leaves a cache in
            the model's own type.
        match: Globs over names of attention units.

    Examples:
        >>> CacheSpace(types=["kv2", "dense", "kv4"]).types
        ('dense', 'kv4', 'kv2')
    """

    types: Annotated[tuple[str, ...], Field(min_length=1, max_length=100)]
    match: Annotated[Globs, Field(min_length=1)] = ("*",)

    @property
    def shared(self) -> bool:
        """Whether all attentions have one type: llama.cpp's."""
        return any(name in STORAGE for name in self.types)

    @field_validator("types")
    @classmethod
    def _of_one_program(cls, types: tuple[str, ...]) -> tuple[str, ...]:
        """Those that there are, from most to fewest bits."""
        named = [name for name in dict.fromkeys(types) if name != UNCHANGED]
        if unknown := [name for name in named if name not in CACHES]:
            raise ValueError(
                f"there is no type of caches {unknown[0]!r}: choose among {', '.join(CACHES)}"
            )
        if not named:
            raise ValueError(f"'{UNCHANGED}' alone changes nothing: give a type")
        if len({name in STORAGE for name in named}) > 1:
            raise ValueError(
                f"{' and '.join(named)} are not of one program: give llama.cpp's types, or kv2 to "
                "kv8, torch's"
            )
        named.sort(key=lambda name: CACHES[name].bits_per_weight, reverse=True)
        return (UNCHANGED, *named) if UNCHANGED in types else tuple(named)

    @model_validator(mode="after")
    def _matches_all(self) -> CacheSpace:
        if self.shared and self.match != ("*",):
            raise ValueError("llama.cpp has one type for the caches of all layers: leave match out")
        return self
