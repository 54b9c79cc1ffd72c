"""The command line. Nearly every command calls one function of `evocompress.api`."""

from __future__ import annotations

import json
import logging
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from evocompress.cli import about
from evocompress.cli.ending import INTERRUPTED, can_mend, told_interrupt
from evocompress.cli.library import library_app
from evocompress.cli.options import (
    Folder,
    Force,
    ForProgram,
    Limit,
    Overrides,
    RayAddress,
    Resume,
    RunFile,
    Tasks,
    TasksFolder,
    Texts,
    on_ray,
    say,
)
from evocompress.core.errors import RunError, one_line
from evocompress.core.processes import check_alone, first_to_say
from evocompress.core.progress import Reporter
from evocompress.core.stopping import signal_that_came, stop_on_signals
from evocompress.core.terminal import print_table, text_table

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Finds how to compress a pretrained transformer, and does it.",
    epilog="Start with `evocompress demo`, or `evocompress search "
    "search_spaces/smollm2_sparsity_50.yaml`.",
)
app.add_typer(library_app, name="library")
about.add_to(app)
NOISY = ("torchao", "torch.utils._pytree")  # they warn of kernels for other machines


@app.callback()
def begin(context: typer.Context, version: about.Version = False) -> None:
    """Refuses several processes where they would do the same work side by side."""
    if context.invoked_subcommand != "heal":
        check_alone(f"evocompress {context.invoked_subcommand}")


@app.command(epilog="Example: `evocompress demo`")
def demo(
    runs: Annotated[Path, typer.Option(help="Folder that gets the run's folder.")] = Path("runs"),
) -> None:
    """Compress SmolLM2-135M from end to end in a few minutes and print the comparison."""
    from evocompress.cli.demo import demo as run_demo
    from evocompress.report import table

    folder = run_demo(runs)
    print_table(table(folder))
    say(f"Report: {folder / 'report.html'}")


@app.command(
    epilog="Examples: `evocompress search search_spaces/smollm2_sparsity_50.yaml`; "
    "`evocompress search run.yaml name=trial search.generations=20`; "
    "`evocompress search run.yaml --resume`; `evocompress search run.yaml --workers 2`; "
    "`evocompress search run.yaml search.tokens=90000 --resume`, with more tokens than before; "
    "`evocompress search run.yaml --ray auto`; `evocompress search run.yaml --for llama.cpp`"
)
def search(
    run_file: RunFile,
    overrides: Overrides = None,
    resume: Resume = False,
    workers: Annotated[
        int | None, typer.Option(help="Ray workers that hold the model.", show_default=False)
    ] = None,
    ray: RayAddress = None,
    program: ForProgram = None,
    force: Force = False,
) -> None:
    """Search for the best candidate; first makes what is missing: level library, latency table.

    The table is measured where budget or objectives name a latency: about a quarter of an hour
    for SmolLM2-135M on two cores.
    """
    from evocompress import api
    from evocompress.core.config_file import load_config
    from evocompress.export import program_named

    changes = [*(overrides or []), *on_ray(ray)]
    changes += ["executor=ray", f"ray.workers={workers}"] if workers is not None else []
    if program is not None:
        program_named(program)
        changes.append(f"space.fits={program}")
    folder = api.search(
        load_config(run_file, changes), resume=resume, force=force, reporter=Reporter()
    )
    say(f"Winner: {folder / 'winner.json'}")
    say(f"Next: evocompress materialize {folder}")


@app.command(
    epilog="Examples: `evocompress sweep search_spaces/smollm2_sweep.yaml`; "
    "`evocompress sweep sweep.yaml --resume`; "
    "`evocompress sweep sweep.yaml name=trial ray.workers=2`"
)
def sweep(
    sweep_file: Annotated[
        Path, typer.Argument(help="YAML file of the sweep, or a shipped one.", show_default=False)
    ],
    overrides: Overrides = None,
    resume: Resume = False,
    force: Force = False,
) -> None:
    """Search many times, over models, spaces, budgets, seeds and settings, on Ray Tune.

    Ends with a table of all trials, and with a non-zero exit status where one has failed.
    """
    from evocompress import api
    from evocompress.pipeline.sweep import failures, load_sweep
    from evocompress.report import sweep_table

    config = load_sweep(sweep_file, overrides or [])
    folder = api.sweep(config, resume=resume, force=force, reporter=Reporter())
    print_table(sweep_table(folder))
    say(f"Report: {folder / 'sweep.html'}")
    if failed := failures(folder):
        raise RunError(f"{failed}; once it is mended, the same command with --resume tries again")


@app.command(epilog="Example: `evocompress rounds smollm2_width_70 rounds=2 name=twice`")
def rounds(
    run_file: RunFile,
    overrides: Overrides = None,
    resume: Resume = False,
    force: Force = False,
) -> None:
    """Search, materialize and heal several times, each round cutting a part of the budget.

    Ends with a table of the models of all rounds on held-out text, beside the dense model.
    """
    from evocompress import api
    from evocompress.core.config_file import load_config
    from evocompress.report import table

    config = load_config(run_file, overrides or [])
    folder = api.rounds(config, resume=resume, force=force, reporter=Reporter())
    print_table(table(folder))
    say(f"Report: {folder / 'report.html'}")


@app.command(
    epilog="Example: `evocompress profile search_spaces/smollm2_latency70.yaml`; "
    "`evocompress profile run.yaml latency.prefill=[4,256] --anew`; "
    "`evocompress profile run.yaml --ray auto`"
)
def profile(
    run_file: RunFile,
    overrides: Overrides = None,
    anew: Annotated[bool, typer.Option("--anew", help="Measure a table anew.")] = False,
    ray: RayAddress = None,
) -> None:
    """Measure the latency table of a run's model on this machine, or show the one there is.

    With Ray it is measured on the cluster, alone on a GPU, or on a node without one.
    """
    from evocompress import api
    from evocompress.core.config_file import load_config
    from evocompress.evaluation.profile import table_rows

    config = load_config(run_file, [*(overrides or []), *on_ray(ray)])
    path, table = api.profile(config, anew=anew, reporter=Reporter())
    print_table(text_table(table_rows(table)))
    say(f"Table: {path}")


@app.command(
    epilog="Examples: `evocompress plan meta-llama/Llama-3.1-8B --space "
    "search_spaces/smollm2_width_70.yaml --device h200`; "
    "`evocompress plan demo:smollm2-135m --space run.yaml --tokens 100000 heal.steps=50`"
)
def plan(
    model: Annotated[
        str, typer.Argument(help="Folder, config.json, hub id or demo.", show_default=False)
    ],
    space: Annotated[Path, typer.Option(help="Run file (YAML).", show_default=False)],
    overrides: Overrides = None,
    device: Annotated[
        str, typer.Option(help="`here`, `h200`, `h100`, `a100`, `l40s` or `rtx4090`.")
    ] = "here",
    tokens: Annotated[
        int | None, typer.Option(help="Requested tokens of the search.", show_default=False)
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, max=4096, help="That share out the healing, a device each.")
    ] = 1,
) -> None:
    """Foretell time, memory and disk of library, search and healing from a model's config alone.

    No weights are read. On `here` this machine is measured for some seconds.
    """
    from evocompress import api
    from evocompress.core.config_file import load_config
    from evocompress.pipeline.planning import plan_notes, plan_rows

    changes = [f"model.source={json.dumps(model)}", *(overrides or [])]
    changes += [f"search.tokens={tokens}"] if tokens is not None else []
    found = api.plan(load_config(space, changes), device, processes=processes)
    print_table(text_table(plan_rows(found)))
    for note in plan_notes(found):
        say(note)


@app.command(
    epilog="Examples: `evocompress models`; `evocompress models --type olmo2 --type lfm2`; "
    "`evocompress models Qwen/Qwen3-0.6B`; `evocompress models --json`"
)
def models(
    model: Annotated[
        str | None,
        typer.Argument(help="Folder, config.json, hub id or demo; default: all types."),
    ] = None,
    types: Annotated[
        list[str] | None,
        typer.Option("--type", help="Only this type; may be given again.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    by_format: Annotated[
        bool, typer.Option("--formats", help="Of types, what each format holds.")
    ] = False,
) -> None:
    """Show what can be done to a model, or to each type of model of the installed transformers.

    No weights are read. All types take some minutes the first time.
    """
    from evocompress import api
    from evocompress.pipeline.offers import (
        format_rows,
        formats_markdown,
        markdown,
        model_rows,
        type_rows,
    )

    if model is not None and (types or as_markdown or by_format):
        raise RunError("a model is shown by itself: leave out --type, --markdown and --formats")
    if model is not None:
        found = [api.model_offers(model)]
    else:
        found = api.type_offers(types or (), reporter=Reporter())
    if as_json:
        typer.echo(json.dumps([asdict(offers) for offers in found], indent=1))
    elif as_markdown:
        for line in (formats_markdown if by_format else markdown)(found):
            say(line)
    elif model is not None:
        print_table(text_table(model_rows(found[0])))
    else:
        print_table(text_table((format_rows if by_format else type_rows)(found)))


@app.command(
    epilog="Examples: `evocompress materialize runs/demo --out smaller-model`; "
    "`evocompress materialize runs/demo --for llama.cpp --weights q8_0 --out smaller-gguf`"
)
def materialize(
    folder: Folder,
    out: Annotated[Path | None, typer.Option(help="Default: `checkpoint` in the run.")] = None,
    form: Annotated[
        str,
        typer.Option(
            "--format", help="`stock`, `hf`, `padded`, `folded`, `deci`, `gguf` or `auto`."
        ),
    ] = "auto",
    program: ForProgram = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="`float32`, `float16`, `bfloat16`, or `q8_0` (GGUF); default: the run's.",
            show_default=False,
        ),
    ] = None,
    candidate: Annotated[
        str, typer.Option(help="`winner`, `uniform`, or the id of a candidate of the journal.")
    ] = "winner",
    healed: Annotated[
        bool, typer.Option("--healed", help="Write what heal made of the run's checkpoint.")
    ] = False,
) -> None:
    """Write a candidate as a checkpoint that transformers, vLLM or llama.cpp loads."""
    from evocompress import api

    written = api.materialize(
        folder,
        out=out,
        form=form,
        program=program,
        weights=weights,
        candidate=candidate,
        healed=healed,
        reporter=Reporter(),
    )
    say(written)


@app.command(
    epilog="Examples: `evocompress heal runs/demo heal.steps=100`; "
    "`evocompress heal /shared/runs/trial --ray auto`; "
    "`torchrun --nproc-per-node 2 -m evocompress heal runs/demo`"
)
def heal(
    folder: Folder,
    overrides: Overrides = None,
    resume: Resume = False,
    force: Force = False,
    ray: RayAddress = None,
) -> None:
    """Distil the dense model into the run's checkpoint; zeros stay zeros.

    With Ray this is one task on the cluster, whose nodes must see the folder. Several processes,
    as torchrun or accelerate start them, share out the work and the optimizer's memory.
    """
    from evocompress import api

    changes = [*(overrides or []), *on_ray(ray)]
    say(api.heal(folder, changes, resume=resume, force=force, reporter=Reporter()))


@app.command(
    epilog="Examples: `evocompress evaluate runs/demo`; "
    "`evocompress evaluate runs/demo --tasks piqa,arc_easy --tasks-folder tasks --limit 500`; "
    "`evocompress evaluate runs/demo --text novels.txt --text code.jsonl`"
)
def evaluate(
    folder: Folder,
    overrides: Overrides = None,
    tasks: Tasks = None,
    tasks_folder: TasksFolder = None,
    limit: Limit = None,
    texts: Texts = None,
) -> None:
    """Compare dense, uniform, searched and healed on held-out text; measure latency.

    With `--tasks` they answer questions as well, through lm-evaluation-harness, which the extra
    `eval` installs: the share of right answers, and how many flip, beside the dense model's.
    """
    from evocompress import api
    from evocompress.report import table

    asked = {
        "tasks": None if tasks is None else [name.strip() for name in tasks.split(",")],
        "tasks_folder": None if tasks_folder is None else str(tasks_folder),
        "limit": limit,
        "texts": texts,
    }
    given = [f"evaluate.{k}={json.dumps(v)}" for k, v in asked.items() if v is not None]
    api.evaluate(folder, [*(overrides or []), *given], reporter=Reporter())
    print_table(table(folder))


@app.command(epilog="Example: `evocompress report runs/demo`")
def report(folder: Folder) -> None:
    """Write `report.html` and `summary.md` of a run or rounds, or `sweep.html` of a sweep."""
    from evocompress import api

    say(api.report(folder))


def main() -> None:
    """Runs the command line; a problem the user can mend is one line and a non-zero exit."""
    stop_on_signals()
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        app()
    except SystemExit as stop:
        if stop.code in (INTERRUPTED, signal.SIGTERM):  # Ray ends with the latter as it begins
            stop.code = told_interrupt(signal_that_came() or int(stop.code))
        raise
    except Exception as error:
        if came := signal_that_came():  # libraries may turn an interrupt into an error of theirs
            sys.exit(told_interrupt(came))
        if not can_mend(error):
            raise
        sys.exit(f"error: {one_line(error)}" if first_to_say(one_line(error)) else 1)
