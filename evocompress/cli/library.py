"""The commands about level libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evocompress.cli.options import Overrides, RunFile, say
from evocompress.core.progress import Reporter
from evocompress.core.terminal import print_table

library_app = typer.Typer(no_args_is_help=True, help="Build or inspect a level library.")


@library_app.command(
    "build", epilog="Example: `evocompress library build run.yaml library.path=libraries/smollm2`"
)
def library_build(run_file: RunFile, overrides: Overrides = None) -> None:
    """Build the level library of a run, or finish one that was interrupted."""
    from evocompress import api
    from evocompress.core.config_file import load_config

    say(api.build_library(load_config(run_file, overrides or []), reporter=Reporter()))


@library_app.command("inspect", epilog="Example: `evocompress library inspect runs/demo/library`")
def library_inspect(
    path: Annotated[Path, typer.Argument(help="Folder of a level library.", show_default=False)],
    verify: Annotated[bool, typer.Option("--verify", help="Check every checksum.")] = False,
) -> None:
    """Show what a level library holds, and whether its files are whole."""
    from evocompress.compression.library.inspect import summary

    print_table(summary(path, verify=verify))
