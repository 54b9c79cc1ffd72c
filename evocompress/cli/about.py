"""The commands about this program and this computer: spaces, doctor, --version."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from evocompress.cli.options import say
from evocompress.core.errors import RunError
from evocompress.core.progress import Reporter
from evocompress.core.terminal import add_row, print_table, shown

WRAPPED = {"what for", "", "what it is"}
"""Columns whose texts are broken where the terminal is narrow."""


def show_version(wanted: bool) -> None:
    """Prints the versions of this program and of what computes, and ends; torch is not imported."""
    if wanted:
        from evocompress.pipeline.doctor import installed_line

        say(installed_line())
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option(
        "--version", help="Show the versions and end.", is_eager=True, callback=show_version
    ),
]


def add_to(app: typer.Typer) -> None:
    """Adds the commands of this file to the command line."""
    app.command(epilog="Examples: `evocompress doctor`; `evocompress doctor --no-speed`")(doctor)
    app.command(epilog="Examples: `evocompress spaces`; `evocompress spaces smollm2_width_70`")(
        spaces
    )


def spaces(
    name: Annotated[
        str | None, typer.Argument(help="The one that is to be printed.", show_default=False)
    ] = None,
) -> None:
    """List the run files that come with the program, or print one, to be copied and changed.

    Their names can be given to search, sweep and the like in any folder.
    """
    from evocompress.core.config_file import first_sentence, nearest, shipped_files

    files = shipped_files()
    if name is None:
        rows = [["run file", "what for"]]
        rows += [[stem, first_sentence(file)] for stem, file in files.items()]
        print_table(_table(rows))
        return
    stem = name.removesuffix(".yaml")
    if stem not in files:
        raise RunError(f"no shipped run file is called '{name}': {nearest(stem, files)}")
    for line in files[stem].read_text(encoding="utf-8").splitlines():
        say(line)


def doctor(
    speed: Annotated[
        bool, typer.Option("--speed/--no-speed", help="Measure for some seconds.")
    ] = True,
) -> None:
    """Say what this computer has, what is missing for which feature, and what will not work.

    Ends with exit status 1 where something that is required is missing or broken.
    """
    from evocompress.pipeline import doctor as health

    found = health.examine(Reporter(), speed=speed)
    tables = [health.package_rows(found)]
    if found.computer is not None:
        tables += [health.machine_rows(found), health.feature_rows(found)]
        tables += [health.speed_rows(found)] if speed else []
    for rows in tables:
        print_table(_table(rows))
    _listed("Will not work here", list(health.limits(found)))
    wrong = list(health.broken(found))
    _listed("Required, and missing or broken", wrong)
    if wrong:
        raise typer.Exit(1)
    say("Everything that is required works.")


def _table(rows: Sequence[Sequence[str]]) -> Table:
    """A table of texts, all of them at the left."""
    heading, *body = rows
    table = Table()
    for name in heading:
        table.add_column(shown(name), no_wrap=name not in WRAPPED, overflow="fold")
    for row in body:
        add_row(table, *row)
    return table


def _listed(title: str, lines: Sequence[str]) -> None:
    """A title and its lines, if there are any."""
    if lines:
        _print(f"\n{title}:")
    for line in lines:
        _print(f"- {line}")


def _print(text: str) -> None:
    """Prints a sentence, broken between words where there is a terminal."""
    console = Console()
    console.print(shown(text), soft_wrap=not console.is_terminal)
