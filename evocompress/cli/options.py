"""Arguments and options of the command line, most of them shared by several commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from evocompress.core.foreign_text import printable
from evocompress.core.processes import is_first

RunFile = Annotated[
    Path,
    typer.Argument(help="Run file (YAML), or the name of a shipped one.", show_default=False),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Changes such as `search.generations=5`.", show_default=False),
]
Folder = Annotated[Path, typer.Argument(help="Folder of a run.", show_default=False)]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray", help="Address of a Ray cluster; `auto`: this machine's.", show_default=False
    ),
]
ForProgram = Annotated[
    str | None,
    typer.Option(
        "--for",
        help="Program that is to load it: `transformers`, `vllm`, `llama.cpp`.",
        show_default=False,
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where it stopped.")]
Force = Annotated[
    bool,
    typer.Option("--force", help="Go on under other circumstances: versions, device, threads."),
]
Tasks = Annotated[
    str | None, typer.Option(help="Tasks to be asked, such as `piqa,arc_easy`.", show_default=False)
]
TasksFolder = Annotated[
    Path | None,
    typer.Option(
        help="Folder of their questions, `NAME.jsonl`; others are lm-evaluation-harness's own.",
        show_default=False,
    ),
]
Limit = Annotated[
    int | None, typer.Option(help="Only the first questions of each task.", show_default=False)
]
Texts = Annotated[
    list[str] | None,
    typer.Option("--text", help="A further text; may be given again.", show_default=False),
]


def on_ray(address: str | None) -> list[str]:
    """The changes of a configuration that name a Ray cluster."""
    return [] if address is None else ["executor=ray", f"ray.address={json.dumps(address)}"]


def say(text: object) -> None:
    """One line on the standard output, of the first process where there are several."""
    if is_first():
        typer.echo(printable(str(text), ""))
