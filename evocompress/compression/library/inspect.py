"""A level library in words, for the command line."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from evocompress.compression.library.manifest import Manifest, read_manifest
from evocompress.compression.library.store import verify_files
from evocompress.core.terminal import add_row, shown


def summary(path: Path, *, verify: bool = False) -> Table:
    """A table of what a library, finished or not, holds; with `verify` checksums are checked.

    Raises:
        LibraryError: It is missing or damaged.
    """
    manifest = read_manifest(path)
    if verify:
        verify_files(path, manifest)
    title = shown(f"Level library {path}")
    table = Table(title=title, show_header=False, title_justify="left")
    for row in _rows(manifest, verify):
        add_row(table, *row)
    return table


def _rows(manifest: Manifest, verified: bool) -> list[tuple[str, str]]:
    recipe = manifest.recipe
    stored = [len(recipe.stored(unit)) for unit in recipe.levels]
    blocks = len(set(manifest.units.values()))
    refitted = ", refitted" * bool(recipe.reconstruct)
    size = sum(record.bytes for record in manifest.blocks.values()) / 2**20
    rows = [
        ("model", recipe.model),
        ("calibration", recipe.calibration),
        *([("zeros", recipe.criterion)] if recipe.criterion else []),
        *([("widths", recipe.width_criterion + refitted)] if recipe.width_criterion else []),
        ("Hessians", f"{recipe.hessians}, damping {recipe.damping}"),
        ("units", str(len(recipe.levels))),
        ("levels", f"{min(stored)} to {max(stored)} stored levels a unit"),
        ("blocks", f"{blocks - len(manifest.missing)} of {blocks} finished"),
        ("size", f"{size:,.0f} MiB"),
        ("checksums", "verified" if verified else "not checked (--verify does)"),
    ]
    rows += _errors(manifest) + _routed(manifest)
    return rows + [(name, version) for name, version in manifest.versions.items()]


def _errors(manifest: Manifest) -> list[tuple[str, str]]:
    """Mean relative output error of the least and of the most compressed level."""
    errors = [values for record in manifest.blocks.values() for values in record.errors.values()]
    if not errors:
        return []
    low = sum(min(values) for values in errors) / len(errors)
    high = sum(max(values) for values in errors) / len(errors)
    return [("output error", f"{low:.4g} to {high:.4g} of the output energy, mean over units")]


def _routed(manifest: Manifest) -> list[tuple[str, str]]:
    """How many calibration tokens the experts of mixtures saw."""
    records = [entry for block in manifest.blocks.values() for entry in block.inputs.values()]
    tokens = [entry.tokens for entry in records if entry.tokens is not None]
    if not tokens:
        return []
    unseen = tokens.count(0)
    text = f"{min(tokens):,} to {max(tokens):,} tokens reached an input of an expert"
    return [("experts", text + f", {unseen} inputs none: ranked by weights alone" * bool(unseen))]
