"""Making a level library, block by block, so that a killed build goes on where it stopped.

Hidden states of all calibration sequences are carried from block to block. With ``dense``
Hessians one pass through each block gives both the statistics of its matrices and the states
that enter the next one (as EvoPress, 2410.14649). With ``propagated`` ones the block is run
again with its matrices compressed, and later blocks see what comes out (as SparseGPT,
2301.00774).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from evocompress import __version__
from evocompress.config import LibraryConfig
from evocompress.criteria import CRITERIA, Statistics
from evocompress.criteria.base import relative_errors
from evocompress.errors import LibraryError
from evocompress.families import Matrix
from evocompress.library.files import TensorWriter, durable_file, remove_leftovers
from evocompress.library.gram import collecting
from evocompress.library.hidden import HiddenStates
from evocompress.library.manifest import (
    NAME,
    BlockRecord,
    InputRecord,
    Manifest,
    Recipe,
    read_manifest,
)
from evocompress.library.plan import check_fits, plan_library
from evocompress.library.store import Library, check_size, open_library, tensor_key
from evocompress.models import LoadedModel
from evocompress.types import Level

Progress = Callable[[float, float, str], None]
"""Called with (blocks done, blocks to do, text) before each block and at the end."""


def build_library(
    loaded: LoadedModel,
    wanted: Mapping[str, Sequence[Level]],
    tokens: Tensor,
    calibration_fingerprint: str,
    config: LibraryConfig,
    path: Path,
    *,
    batch: int,
    propagate: Mapping[str, Level] | None = None,
    progress: Progress | None = None,
) -> Library:
    """Make a level library, finish one that was interrupted, or open one that is there.

    A library at `path` serves if it was made in the same way and has at least the wanted
    levels. The result depends on `batch` only by rounding.

    Args:
        loaded: The model, dense; it is as before when this returns or raises.
        wanted: Levels of each matrix unit; a dense one needs no tensor and is only listed.
        tokens: Calibration sequences (N, S), int64.
        calibration_fingerprint: What identifies `tokens`.
        config: Criterion, Hessians and damping; its `path` is not read.
        path: Folder of the library.
        batch: Sequences that pass a block together.
        propagate: With propagated Hessians, the level of each unit that later blocks see; by
            default its middle level by number of zeros (the lower of two).
        progress: Told of every block; only blocks that are really made are counted.

    Raises:
        LibraryError: Disk or memory do not suffice, the library at `path` is damaged or was
            made otherwise, or a level is impossible.
    """
    recipe = _recipe(loaded, wanted, calibration_fingerprint, config, propagate)
    manifest = _begin(loaded, recipe, tokens, config, path, batch)
    if manifest.missing or not (path / NAME).exists():
        path.mkdir(parents=True, exist_ok=True)
        with _only_builder(path):
            remove_leftovers(path)
            _Builder(loaded, path, manifest, tokens, batch).build(progress or _silent)
    return open_library(path, model_fingerprint=loaded.fingerprint)


def check_library(
    loaded: LoadedModel,
    wanted: Mapping[str, Sequence[Level]],
    tokens: Tensor,
    calibration_fingerprint: str,
    config: LibraryConfig,
    path: Path,
    *,
    batch: int,
) -> None:
    """Whether `build_library` with the same arguments can begin; nothing is written.

    Raises:
        LibraryError: Disk or memory do not suffice, or what is at `path` is damaged or was made
            otherwise.
    """
    recipe = _recipe(loaded, wanted, calibration_fingerprint, config, None)
    _begin(loaded, recipe, tokens, config, path, batch)


def _begin(
    loaded: LoadedModel,
    recipe: Recipe,
    tokens: Tensor,
    config: LibraryConfig,
    path: Path,
    batch: int,
) -> Manifest:
    """The manifest to go on from, after checking that the rest fits."""
    manifest = _resumed(path, recipe) if (path / NAME).exists() else _new(loaded, recipe)
    rest = {unit: levels for unit, levels in recipe.levels.items() if _missing(manifest, unit)}
    if rest:
        check_fits(plan_library(loaded, rest, tokens, config, batch=batch), path)
    return manifest


@contextmanager
def _only_builder(path: Path) -> Iterator[None]:
    try:
        with FileLock(path / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise LibraryError(
            f"another process is building the level library at {path}: wait for it"
        ) from error


def _silent(done: float, total: float, text: str) -> None:
    pass


def _recipe(
    loaded: LoadedModel,
    wanted: Mapping[str, Sequence[Level]],
    calibration: str,
    config: LibraryConfig,
    propagate: Mapping[str, Level] | None,
) -> Recipe:
    if config.criterion not in CRITERIA:
        known = ", ".join(CRITERIA)
        raise LibraryError(f"there is no criterion {config.criterion!r}: choose one of {known}")
    levels = {unit: tuple(dict.fromkeys(choice)) for unit, choice in wanted.items()}
    propagated: dict[str, Level] = {}
    if config.hessians == "propagated":
        propagated = {unit: _middle(choice) for unit, choice in levels.items() if choice}
        propagated |= propagate or {}
    for unit, level in propagated.items():
        if level not in levels.get(unit, ()):
            raise LibraryError(f"{unit} cannot be propagated at {level.key}, which is not wanted")
    return Recipe(
        model=loaded.fingerprint,
        calibration=calibration,
        criterion=config.criterion,
        hessians=config.hessians,
        damping=config.damping,
        levels=levels,
        propagated=propagated,
    )


def _middle(levels: Sequence[Level]) -> Level:
    return sorted(levels, key=lambda level: level.zeros)[(len(levels) - 1) // 2]


def _new(loaded: LoadedModel, recipe: Recipe) -> Manifest:
    """A manifest without finished blocks."""
    matrices = {u.name: u.block for u in loaded.family.units(loaded.model) if u.kind == "matrix"}
    unknown = [unit for unit in recipe.levels if unit not in matrices]
    if unknown:
        raise LibraryError(f"the model has no matrix {unknown[0]}: check the search space")
    versions = {"evocompress": __version__, "torch": torch.__version__}
    return Manifest(recipe, versions, {unit: matrices[unit] for unit in recipe.levels}, {})


def _resumed(path: Path, wanted: Recipe) -> Manifest:
    """The manifest of a library that serves, without the blocks whose files are gone."""
    manifest = read_manifest(path)
    manifest.recipe.check_serves(wanted, path)
    present = {
        index: record for index, record in manifest.blocks.items() if (path / record.file).exists()
    }
    for record in present.values():
        check_size(path, record)
    return replace(manifest, blocks=present)


def _missing(manifest: Manifest, unit: str) -> bool:
    return manifest.units[unit] not in manifest.blocks


class _Builder:
    """Makes the missing blocks of a library."""

    def __init__(
        self, loaded: LoadedModel, path: Path, manifest: Manifest, tokens: Tensor, batch: int
    ) -> None:
        self._loaded = loaded
        self._path = path
        self._manifest = manifest
        self._recipe = manifest.recipe
        self._criterion = CRITERIA[manifest.recipe.criterion]
        self._tokens = tokens
        self._states = (
            None if self._criterion.needs == "nothing" else HiddenStates(loaded, tokens, batch)
        )

    def build(self, progress: Progress) -> None:
        """Make what is missing; the states pass through finished blocks again."""
        self._manifest.write(self._path)
        todo = self._manifest.missing
        blocks = len(self._loaded.family.blocks(self._loaded.model))
        for index in range(max(todo, default=-1) + 1):
            if index in todo:
                progress(todo.index(index), len(todo), f"block {index + 1} of {blocks}")
                record = self._make_block(index, self._statistics(index))
                self._manifest = self._manifest.with_block(index, record)
                self._manifest.write(self._path)
            if index not in todo or self._recipe.propagated:
                self._advance(index)
        progress(len(todo), len(todo), "")

    def _statistics(self, index: int) -> dict[str, Statistics]:
        """Statistics of each input of a block; dense states go on to the next block."""
        if self._states is None:
            return {}
        matrices = [matrix for _, matrix in self._targets(index)]
        block = self._loaded.family.blocks(self._loaded.model)[index]
        needs = self._criterion.needs
        with collecting(block, matrices, needs) as sums:
            self._states.run(index, keep=not self._recipe.propagated)
        return {
            word: Statistics(
                gram=total if needs == "gram" else None,
                squares=total if needs == "squares" else None,
                sequences=len(self._tokens),
                tokens=self._tokens.numel(),
                damping=self._recipe.damping,
            )
            for word, total in sums.items()
        }

    def _advance(self, index: int) -> None:
        """Carry the states past a block, compressed where the library is propagated."""
        if self._states is not None:
            with self._compressed(index):
                self._states.run(index, keep=True)

    @contextmanager
    def _compressed(self, index: int) -> Iterator[None]:
        """The block at its propagated levels; dense again afterwards."""
        library = Library(self._path, self._manifest)
        dense: list[tuple[nn.Parameter, Tensor]] = []
        try:
            for unit in self._manifest.block_units(index):
                level = self._recipe.propagated.get(unit)
                if level is not None and not level.dense:
                    parameter = self._parameter(unit)
                    dense.append((parameter, parameter.data))
                    parameter.data = library.load(unit, level)["weight"].to(parameter.device)
            yield
        finally:
            for parameter, data in dense:
                parameter.data = data

    def _make_block(self, index: int, statistics: Mapping[str, Statistics]) -> BlockRecord:
        """Write the file of a block, one matrix after the other."""
        targets = self._targets(index)
        layout = {
            tensor_key(unit, level): tuple(self._parameter(unit).shape)
            for unit, _ in targets
            for level in self._recipe.stored(unit)
        }
        name = f"block-{index:04d}.safetensors"
        errors: dict[str, tuple[float, ...]] = {}
        with durable_file(self._path / name) as file:
            writer = TensorWriter(file, layout, self._loaded.model.dtype)
            for unit, matrix in targets:
                known = statistics.get(matrix.input, Statistics())
                errors |= self._make_matrix(writer, unit, matrix, known)
        inputs = {word: self._input_record(known) for word, known in statistics.items()}
        return BlockRecord(name, writer.bytes, writer.sha256, inputs, errors)

    def _make_matrix(
        self, writer: TensorWriter, unit: str, matrix: Matrix, statistics: Statistics
    ) -> dict[str, tuple[float, ...]]:
        """Write all levels of a matrix; returns their errors where they can be measured."""
        own = self._parameter(unit).data.float()
        weight = own.T if matrix.transposed else own
        levels = self._recipe.stored(unit)
        results = self._criterion.compress(weight, statistics, levels)
        for level, result in zip(levels, results, strict=True):
            writer.add(tensor_key(unit, level), result.T if matrix.transposed else result)
        gram = statistics.gram
        if gram is None:
            return {}
        return {unit: tuple(relative_errors(weight, results, gram))}

    def _input_record(self, statistics: Statistics) -> InputRecord:
        if statistics.gram is not None:
            trace = float(statistics.gram.trace())
            return InputRecord(trace, statistics.factor.damping)
        return InputRecord(float(statistics.norms.square().sum()) * statistics.sequences)

    def _targets(self, index: int) -> list[tuple[str, Matrix]]:
        """The units of a block in the order of computation, with their matrices."""
        prefix = f"{self._loaded.family.block_path()}.{index}."
        wanted = set(self._manifest.block_units(index))
        named = [(prefix + matrix.path, matrix) for matrix in self._loaded.family.matrices()]
        return [(unit, matrix) for unit, matrix in named if unit in wanted]

    def _parameter(self, unit: str) -> nn.Parameter:
        return self._loaded.model.get_parameter(f"{unit}.weight")
