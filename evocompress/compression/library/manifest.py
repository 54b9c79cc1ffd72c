"""The manifest of a level library: how it was made, and which block files it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict

from evocompress.compression.library.files import durable_file
from evocompress.core.errors import LibraryError
from evocompress.core.files import json_text, read_json, validated
from evocompress.core.types import Level

FORMAT = 2
NAME = "manifest.json"
ANEW = "delete the folder to build the library again"

DECISIVE = (
    "model",
    "calibration",
    "criterion",
    "width_criterion",
    "reconstruct",
    "hessians",
    "damping",
    "rounding",
)
"""What two libraries must have in common for one to serve as the other."""


@dataclass(frozen=True)
class LibraryRecipe:
    """Everything that decides what a library holds.

    Attributes:
        model: Fingerprint of the dense model.
        calibration: Fingerprint of the calibration tokens.
        criterion: A name from `evocompress.compression.criteria.CRITERIA`; ``None`` without zeros.
        width_criterion: A name from `evocompress.compression.criteria.STRUCTURED`; ``None``
            without widths.
        reconstruct: Whether what is left of a narrowed sub-layer is refitted; ``None`` without
            widths.
        hessians: ``dense`` or ``propagated``.
        damping: Fraction of the mean diagonal added to a Hessian.
        levels: The levels of each matrix, attention and MLP unit, dense ones included.
        propagated: The level at which a unit's outputs reach the later blocks; empty where
            `hessians` is ``dense``.
        rounding: Of matrices to coarser types; ``None`` without any.
    """

    model: str
    calibration: str
    criterion: str | None
    width_criterion: str | None
    reconstruct: bool | None
    hessians: str
    damping: float
    levels: Mapping[str, tuple[Level, ...]]
    propagated: Mapping[str, Level]
    rounding: Literal["gptq", "nearest"] | None = None

    def stored(self, unit: str) -> tuple[Level, ...]:
        """The levels of a unit that need a tensor of their own."""
        return tuple(level for level in self.levels[unit] if not level.dense)

    def check_serves(self, wanted: LibraryRecipe, path: Path) -> None:
        """Refuse a library made for something else; more levels than wanted are welcome.

        How zeros or widths are made does not matter to one who wants none; where a library
        has none, its lack of levels says more.
        """
        for name in DECISIVE:
            mine, theirs = getattr(self, name), getattr(wanted, name)
            if mine != theirs and mine is not None and theirs is not None:
                raise LibraryError(
                    f"the level library at {path} was made with {name} {mine}, not {theirs}: "
                    "choose another library.path or delete the folder"
                )
        for unit in wanted.levels:
            self._check_unit(wanted, unit, path)

    def _check_unit(self, wanted: LibraryRecipe, unit: str, path: Path) -> None:
        absent = [
            level.key for level in wanted.stored(unit) if level not in self.levels.get(unit, ())
        ]
        if absent:
            raise LibraryError(
                f"the level library at {path} lacks {unit} at {', '.join(absent)}: "
                "choose another library.path or delete the folder"
            )
        if self.propagated.get(unit) != wanted.propagated.get(unit):
            raise LibraryError(
                f"the level library at {path} propagated {unit} at another level than wanted: "
                "choose another library.path or delete the folder"
            )


@dataclass(frozen=True)
class InputRecord:
    """The statistics of one input of a block.

    Attributes:
        trace: Sum of its squares over tokens and features; ``None`` where not collected.
        damping: Fraction of the mean diagonal that was really added, where a Hessian was used.
        tokens: How many were sent to the expert that reads it; ``None`` where all are read.
    """

    trace: float | None = None
    damping: float | None = None
    tokens: int | None = None


def _own_file(name: str) -> str:
    """A name that leads nowhere else."""
    if Path(name).name != name:
        raise ValueError("a file lies outside of the library")
    return name


@dataclass(frozen=True)
class BlockRecord:
    """A finished block file.

    Attributes:
        file: Its name within the library.
        bytes: Its size.
        sha256: Its checksum, which names its content.
        inputs: Statistics of each input that was observed.
        errors: For each unit, the relative output error of each stored level in the recipe's
            order (`evocompress.compression.criteria.base.relative_errors`, for widths
            `evocompress.compression.library.block.width_errors`); absent where no Gram matrix was
            collected.
        xxh3: The checksum with which it is verified; ``None`` in libraries of older versions.
    """

    file: Annotated[str, AfterValidator(_own_file)]
    bytes: int
    sha256: str
    inputs: Mapping[str, InputRecord]
    errors: Mapping[str, tuple[float, ...]]
    xxh3: str | None = None


@dataclass(frozen=True)
class Manifest:
    """What is written as ``manifest.json``.

    Attributes:
        recipe: How the library is made.
        versions: Of the packages that make it, and device and instructions of the processor.
        sequences, tokens: How many the calibration has.
        units: Index of the block of each unit.
        blocks: The finished blocks by index.
    """

    recipe: LibraryRecipe
    versions: Mapping[str, str]
    sequences: int
    tokens: int
    units: Mapping[str, int]
    blocks: Mapping[int, BlockRecord]

    __pydantic_config__ = ConfigDict(extra="forbid")  # a level with unknown fields is no level

    @property
    def missing(self) -> list[int]:
        """Blocks that are still to be made, in order."""
        return sorted(set(self.units.values()) - set(self.blocks))

    def with_block(self, index: int, record: BlockRecord) -> Manifest:
        """The same with one more finished block."""
        return replace(self, blocks={**self.blocks, index: record})

    def write(self, folder: Path) -> None:
        """Replace the manifest of a library in one step."""
        with durable_file(folder / NAME) as file:
            file.write(json_text(self._to_json()).encode())

    def _to_json(self) -> dict[str, Any]:
        recipe = asdict(self.recipe) | {
            "levels": {
                unit: [level.to_json() for level in levels]
                for unit, levels in self.recipe.levels.items()
            },
            "propagated": {unit: lv.to_json() for unit, lv in self.recipe.propagated.items()},
        }
        if recipe["rounding"] is None:
            del recipe["rounding"]
        # Workers finish blocks in any order.
        blocks = {str(index): _block_json(record) for index, record in sorted(self.blocks.items())}
        return {
            "format": FORMAT,
            "recipe": recipe,
            "versions": dict(self.versions),
            "sequences": self.sequences,
            "tokens": self.tokens,
            "units": dict(self.units),
            "blocks": blocks,
        }


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a library.

    Raises:
        LibraryError: It is missing, damaged or of another format.
    """
    path = folder / NAME
    if not path.is_file():
        raise LibraryError(f"there is no level library at {folder}: build it first")
    data = read_json(path, kind=LibraryError, remedy=ANEW)
    version = validated(data, Versioned, path, LibraryError, ANEW).format
    if version != FORMAT:
        raise LibraryError(f"{path} has format {version}, but this version reads {FORMAT}: {ANEW}")
    content = {name: value for name, value in data.items() if name != "format"}
    return validated(content, Manifest, path, LibraryError, ANEW)


class Versioned(BaseModel):
    """What the manifest of every version has."""

    format: int


def _block_json(record: BlockRecord) -> dict[str, Any]:
    """As plain data; tokens only where an expert reads them."""
    data = asdict(record)
    for values in data["inputs"].values():
        if values["tokens"] is None:
            del values["tokens"]
    return data
