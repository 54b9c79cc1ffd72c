"""The text files of benchmarks that search, heal and judge: their arguments, and files in turn."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evocompress.core.files import write_text

TURN = 20_000
"""Characters of a file before the next one's."""


def text_parser(description: str, name: str, *, heals: bool = True) -> argparse.ArgumentParser:
    """The arguments that these scripts share; `name` is that of the script."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--calibration",
        nargs="+",
        metavar="FILE",
        help="for library and search; several take turns",
    )
    if heals:
        parser.add_argument("--text", metavar="FILE", help="more text to heal on")
    parser.add_argument("--heldout", nargs="+", metavar="FILE", help="text files that judge")
    parser.add_argument("--sequences", type=int, default=40, help="of each held-out text")
    parser.add_argument("--results", type=Path, default=Path("results") / name)
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--quick", action="store_true", help="a tiny random model")
    return parser


def calibration_of(source: str) -> dict[str, Any]:
    """Settings of the calibration on a text, of which benchmarks need no held-out part."""
    return {
        "source": source,
        "library_sequences": 64,
        "search_sequences": 64,
        "heldout_sequences": 1,
        "length": 512,
        "micro_batch": 1,
    }


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments given, of which ``calibration`` is one file; refuses to begin without files."""
    arguments = parser.parse_args()
    if arguments.quick:
        return arguments
    needed = [name for name in ("calibration", "text", "heldout") if name in arguments]
    if not all(getattr(arguments, name) for name in needed):
        parser.error(f"give --{', --'.join(needed)}, or --quick")
    files = arguments.calibration
    if len(files) > 1:
        arguments.results.mkdir(parents=True, exist_ok=True)
        files = [str(in_turn(files, arguments.results / "calibration.txt"))]
    (arguments.calibration,) = files
    return arguments


def in_turn(files: Sequence[str], out: Path) -> Path:
    """Writes a file in which pieces of files follow each other until one of these ends."""
    texts = [Path(file).read_text(encoding="utf-8") for file in files]
    turns = min(map(len, texts)) // TURN
    pieces = [text[TURN * turn :][:TURN] for turn in range(turns) for text in texts]
    write_text(out, "\n".join(pieces))
    return out
