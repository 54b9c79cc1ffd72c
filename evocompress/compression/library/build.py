"""Making a level library, or finishing one: what is there, what is missing, and whether it fits."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from evocompress.compression.criteria import CRITERIA, STRUCTURED
from evocompress.compression.library.builder import BuildProgress, MakeBlocks, make_blocks
from evocompress.compression.library.dense import dense_model
from evocompress.compression.library.manifest import NAME, LibraryRecipe, Manifest, read_manifest
from evocompress.compression.library.plan import check_fits, plan_library
from evocompress.compression.library.recipe import (
    Wanted,
    make_recipe,
    methods_for,
    types_of,
    without_bias,
)
from evocompress.compression.library.store import Library, check_size, open_library, verify_files
from evocompress.compression.quantization.ggml import PACKAGES
from evocompress.core.circumstances import Facts, differences
from evocompress.core.config import LibraryConfig
from evocompress.core.environment import describe, versions
from evocompress.core.errors import LibraryError
from evocompress.core.files import make_folder
from evocompress.core.leftovers import clear_leftovers
from evocompress.core.progress import tell_nobody
from evocompress.core.storage import GGUF, storage_type
from evocompress.core.types import Level
from evocompress.models.loading import LoadedModel

PLACE = ("device", "instructions")
"""What a manifest says beside versions of packages."""


def build_library(
    loaded: LoadedModel,
    wanted: Wanted,
    tokens: Tensor,
    calibration_fingerprint: str,
    config: LibraryConfig,
    path: Path,
    *,
    batch: int,
    propagate: Mapping[str, Level] | None = None,
    progress: BuildProgress = tell_nobody,
    blocks: MakeBlocks = make_blocks,
) -> Library:
    """Make a level library, finish one that was interrupted, or open one that is there.

    A library at `path` serves if it was made in the same way and has at least the wanted
    levels. Where another process is making it, this one waits. The result depends on `batch`
    only by rounding.

    Args:
        loaded: The model, dense; it is as before when this returns or raises.
        wanted: Levels of matrix, attention and MLP units; a dense one needs no tensor and is
            only listed.
        tokens: Calibration sequences (N, S), int64.
        calibration_fingerprint: What identifies `tokens`.
        config: Criteria, Hessians, damping and cache; its `path` is not read.
        path: Folder of the library.
        batch: Sequences that pass a block together.
        propagate: With propagated Hessians, the level of each unit that later blocks see; by
            default its middle level by what it takes away (the lower of two).
        progress: Told of every block; only blocks that are really made are counted.
        blocks: Makes them: here, or on other machines.

    Raises:
        LibraryError: Disk or memory do not suffice, the library at `path` is damaged or was
            made otherwise, or a unit, level or criterion is impossible.
    """
    recipe = make_recipe(dense_model(loaded), wanted, calibration_fingerprint, config, propagate)
    manifest = _begin(loaded, recipe, tokens, config, path, batch)
    if _is_incomplete(manifest, path):
        make_folder(path, "library.path", LibraryError)
        with _only_builder(path, progress):
            # While this process waited, another one may have made it.
            manifest = _begin(loaded, recipe, tokens, config, path, batch)
            if _is_incomplete(manifest, path):
                clear_leftovers(path)
                _say_what_lacks_a_bias(loaded, manifest.recipe.levels, config)
                verify_files(path, manifest)  # later blocks may be made from these
                manifest.write(path)
                for index, record in blocks(loaded, path, manifest, tokens, batch, progress):
                    manifest = manifest.with_block(index, record)
                    manifest.write(path)
    return open_library(path, loaded, cache_mib=config.cache_mib)


def _say_what_lacks_a_bias(loaded: LoadedModel, wanted: Wanted, config: LibraryConfig) -> None:
    dense = dense_model(loaded)
    lacking = without_bias(dense, wanted, methods_for(dense, wanted, config))
    if lacking:
        logging.getLogger(__name__).warning(
            "library.criterion: %s changes no bias of %d matrices that have none, %s among them",
            config.criterion,
            len(lacking),
            lacking[0],
        )


def check_library(
    loaded: LoadedModel,
    wanted: Wanted,
    tokens: Tensor,
    calibration_fingerprint: str,
    config: LibraryConfig,
    path: Path,
    *,
    batch: int,
) -> None:
    """Whether `build_library` with the same arguments can begin; nothing is written.

    Raises:
        LibraryError: Disk or memory do not suffice, what is at `path` is damaged or was made
            otherwise, or a unit, level or criterion is impossible.
    """
    recipe = make_recipe(dense_model(loaded), wanted, calibration_fingerprint, config, None)
    _begin(loaded, recipe, tokens, config, path, batch)


def _begin(
    loaded: LoadedModel,
    recipe: LibraryRecipe,
    tokens: Tensor,
    config: LibraryConfig,
    path: Path,
    batch: int,
) -> Manifest:
    """The manifest to go on from, after checking that the rest fits."""
    there = (path / NAME).exists()
    manifest = _resumed(path, recipe) if there else _new(loaded, recipe, tokens)
    if there and manifest.missing:
        _check_circumstances(path, manifest.versions, _circumstances(loaded, manifest.recipe))
    levels, done = manifest.recipe.levels, manifest.blocks
    check_fits(plan_library(loaded, levels, tokens, config, batch=batch, done=done), path)
    return manifest


def _is_incomplete(manifest: Manifest, path: Path) -> bool:
    return bool(manifest.missing) or not (path / NAME).exists()


@contextmanager
def _only_builder(path: Path, progress: BuildProgress) -> Iterator[None]:
    """Waits until no other process builds the library; the lock ends with its holder."""
    lock = FileLock(path / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress(0, 1, "waiting for another process that builds it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _new(loaded: LoadedModel, recipe: LibraryRecipe, tokens: Tensor) -> Manifest:
    """A manifest without finished blocks."""
    dense = dense_model(loaded)
    return Manifest(
        recipe,
        versions=_circumstances(loaded, recipe),
        sequences=len(tokens),
        tokens=len(tokens) * loaded.length(tokens),
        units={unit: dense.place(unit) for unit in recipe.levels},
        blocks={},
    )


def _circumstances(loaded: LoadedModel, recipe: LibraryRecipe) -> dict[str, str]:
    """What the tensors depend on beside the recipe."""
    packages = CRITERIA.packages(recipe.criterion) | STRUCTURED.packages(recipe.width_criterion)
    if any(storage_type(name).lane == GGUF for name in types_of(recipe.levels)):
        packages |= PACKAGES
    return versions(packages) | {
        "device": describe(loaded.model.device),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def _check_circumstances(path: Path, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Refuses to finish a library under other circumstances than it was begun under."""
    then, here = (
        Facts(
            versions={name: value for name, value in each.items() if name not in PLACE},
            **{name: each.get(name, "") for name in PLACE},
        )
        for each in (before, now)
    )
    if found := differences(then, here):
        raise LibraryError(
            f"{path} is not finished and was begun under other circumstances "
            f"({'; '.join(found)}), whose blocks are not to be mixed with those made now: finish "
            "it where it was begun, delete it, or choose another library.path"
        )


def _resumed(path: Path, wanted: LibraryRecipe) -> Manifest:
    """The manifest of a library that serves, without the blocks whose files are gone."""
    manifest = read_manifest(path)
    manifest.recipe.check_serves(wanted, path)
    present = {
        index: record for index, record in manifest.blocks.items() if (path / record.file).exists()
    }
    for record in present.values():
        check_size(path, record)
    return replace(manifest, blocks=present)
