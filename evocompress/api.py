"""The stages of a run as functions; the command line calls nothing else.

Examples:
    >>> from evocompress.core.config_file import load_config
    >>> from evocompress.testing.tiny import tiny_checkpoint
    >>> model = tiny_checkpoint(Path("tiny"))
    >>> text = Path("text.txt").write_text(" ".join(str(number**2) for number in range(3000)))
    >>> _ = Path("depth.yaml").write_text('''
    ... model: {source: tiny}
    ... calibration: {source: text.txt, length: 32, search_sequences: 12, heldout_sequences: 4}
    ... space: {drop: {units: [block]}, budget: {body_params: 0.7}}
    ... search: {name: shortgpt}
    ... ''')
    >>> folder = search(load_config("depth.yaml"))
    >>> materialize(folder).name
    'checkpoint'
    >>> heal(folder, ["heal.steps=2"]).parts[-2:]
    ('heal', 'checkpoint')
    >>> evaluate(folder, ["evaluate.latency=false"]).name
    'evaluation.json'
    >>> report(folder).name
    'report.html'
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from evocompress.core.config import RunConfig
from evocompress.core.errors import RunError
from evocompress.core.processes import is_first, joined
from evocompress.core.progress import Reporter, Silent
from evocompress.distributed import backend_of
from evocompress.evaluation.profile import path_of
from evocompress.evaluation.proxies import Metric
from evocompress.export import check_target
from evocompress.export import materialize as write_checkpoint
from evocompress.pipeline import evaluation_stage, stages
from evocompress.pipeline.compared_models import (
    check_form,
    chosen_candidate,
    chosen_format,
    healed_notes,
    healed_source,
)
from evocompress.pipeline.context import RunContext
from evocompress.pipeline.early_checks import check_early, check_outline, check_sources
from evocompress.pipeline.finished import HELDOUT, finished
from evocompress.pipeline.loop import Listener
from evocompress.pipeline.offers import Offers, offers, offers_by_type
from evocompress.pipeline.planning import Plan, outline, plan_on
from evocompress.pipeline.resolve import check_names, with_objects
from evocompress.pipeline.results import costs_of
from evocompress.pipeline.rounds import RoundsFolder, Stages, make_rounds
from evocompress.pipeline.run_folder import RunFolder
from evocompress.pipeline.sweep import SweepConfig, SweepFolder, check_groups, check_sweep, samples
from evocompress.search.base import Searcher
from evocompress.space.costs import LatencyTable


def search(
    config: RunConfig,
    *,
    searcher: type[Searcher] | None = None,
    proxy: type[Metric] | None = None,
    resume: bool = False,
    force: bool = False,
    reporter: Reporter | None = None,
    listener: Listener | None = None,
) -> Path:
    """Finds the best candidate and writes it, with the journal, into the run's folder.

    Everything that can be checked is checked before the folder is made.

    Args:
        config: The run.
        searcher: The class of a searcher, in the place of one that ``search.name`` names; its
            settings are those in ``search``.
        proxy: The metric of a proxy, in the place of one that ``proxy.kind`` names. Workers on Ray
            must be able to import it, unless it is defined in the script that is run.
        resume: Go on in a folder that exists. ``search.tokens`` may be more than before.
        force: Go on under other circumstances (versions, device, threads); the journal and the
            report say so.
        reporter: Told about progress.
        listener: Told about every step as well.

    Returns:
        The run's folder.

    Raises:
        EvoCompressError: Anything that the user can mend.
    """
    return stages.search(
        with_objects(config, searcher, proxy),
        backend_of(config),
        resume=resume,
        force=force,
        reporter=reporter,
        listener=listener,
    )


def sweep(
    config: SweepConfig,
    *,
    resume: bool = False,
    force: bool = False,
    reporter: Reporter | None = None,
) -> Path:
    """Runs all trials of a sweep on Ray Tune and writes the combined report.

    Nothing is begun where the configuration of a trial is wrong. A trial that fails keeps no other
    from going on; its reason is in sweep.json.

    Args:
        config: The sweep.
        resume: Go on in a folder that exists.
        force: Trials go on under other circumstances, as those of `search` do.
        reporter: Told about progress.

    Returns:
        The sweep's folder.

    Raises:
        EvoCompressError: Anything that the user can mend.
    """
    check_groups(config)
    for trial in samples(config):
        check_names(trial.config)
        check_sources(trial.config.calibration)
    from evocompress.distributed.sweep import run_sweep

    folder = check_sweep(config, resume)
    run_sweep(config, folder, resume, reporter or Silent(), force=force)
    report(folder.path)
    return folder.path


def rounds(
    config: RunConfig,
    *,
    resume: bool = False,
    force: bool = False,
    reporter: Reporter | None = None,
) -> Path:
    """Searches and heals in ``rounds`` turns, each on what the turn before it has healed.

    Every round is a run of its own in the folder. All learn from the model of the beginning, with
    which they are compared on held-out text after each round.

    Args:
        config: The run.
        resume: Go on in a folder that exists.
        force: Go on under other circumstances, as `search` and `heal` do.
        reporter: Told about progress.

    Returns:
        The folder of the rounds.

    Raises:
        EvoCompressError: Anything that the user can mend.
    """
    told = reporter or Silent()
    steps = Stages(
        lambda one, begun: search(one, resume=begun, force=force, reporter=told),
        lambda path: materialize(path, form="hf", reporter=told),
        lambda path, begun: heal(path, resume=begun, force=force, reporter=told),
    )
    folder = make_rounds(config, steps, resume=resume, reporter=told)
    report(folder)
    return folder


def profile(
    config: RunConfig, *, anew: bool = False, reporter: Reporter | None = None
) -> tuple[Path, LatencyTable]:
    """The latency table of a run's model on this machine, measured where it is missing.

    With ``executor: ray`` it is measured on the cluster, in a task that has a GPU, or all CPUs of
    a node, to itself.

    Args:
        config: The run.
        anew: Measure even where there is a table.
        reporter: Told about progress.

    Returns:
        The table and its file.

    Raises:
        EvoCompressError: Anything that the user can mend.
    """
    check_names(config)
    check_outline(config)
    context = _context(config, reporter)
    table = context.profile(anew=anew)
    return path_of(table.made, config.latency), table


def plan(config: RunConfig, device: str = "here", *, processes: int = 1) -> Plan:
    """What a run would take, from the model's config alone.

    Args:
        config: The run.
        device: ``here``, which is measured for some seconds, or a name of
            `evocompress.pipeline.planning.DEVICES`.
        processes: That share out the healing, with a device each.

    Raises:
        EvoCompressError: Anything that the user can mend.
    """
    check_names(config)
    return plan_on(config, device, processes)


def model_offers(source: str) -> Offers:
    """What can be done to one model, from its config alone.

    Args:
        source: A folder, ``config.json``, ``.gguf`` file, hub id or the demo's name.

    Raises:
        EvoCompressError: It cannot be compressed at all; the message says why.
    """
    return offers(outline(source))


def type_offers(types: Sequence[str] = (), *, reporter: Reporter | None = None) -> list[Offers]:
    """What can be done to models of some types of the installed transformers, or of all.

    The first time this takes minutes for all; what was found is kept in the cache folder.

    Raises:
        EvoCompressError: There is no such type, or the cache cannot be written.
    """
    return offers_by_type(types, reporter or Silent())


def build_library(config: RunConfig, *, reporter: Reporter | None = None) -> Path:
    """Builds the level library of a run, or finishes one that was interrupted.

    Raises:
        EvoCompressError: Anything that the user can mend.
    """
    check_names(config)
    check_early(config, search=False)
    context = _context(config, reporter)
    if not context.wanted_levels:
        raise RunError(f"{config.name}: the search space only removes, so it needs no library")
    assert context.library is not None
    return context.library.path


def materialize(
    path: Path | str,
    *,
    out: Path | str | None = None,
    form: str = "auto",
    program: str | None = None,
    weights: str | None = None,
    candidate: str = "winner",
    healed: bool = False,
    reporter: Reporter | None = None,
) -> Path:
    """Writes a candidate of a finished search as a checkpoint.

    Args:
        path: The run's folder; it may be read-only where `out` is said.
        out: Where to; by default ``checkpoint`` in the run's folder.
        form: A key of `evocompress.export.FORMATS`, or ``auto``.
        program: What is to load it, a key of `evocompress.export.PROGRAMS`; ``None`` is what the
            search was for, else transformers. The format that ``auto`` takes, and why, is told to
            the reporter.
        weights: One of `evocompress.export.WEIGHTS`; ``None`` keeps the dense checkpoint's.
        candidate: ``winner``, ``uniform``, or an id of the journal.
        healed: Write what `heal` made of the run's checkpoint, whose candidate it then is.
        reporter: Told about progress.

    Returns:
        The checkpoint's folder.

    Raises:
        EvoCompressError: Anything that the user can mend.
    """
    check_form(form, program, weights)
    out = None if out is None else Path(out)
    context = finished(path, reporter)
    own = out is None or context.folder.writable
    if own:
        context.reporter.log_to(context.folder.log)
    source = healed_source(context.folder, out, candidate) if healed else None
    target = out or context.folder.checkpoint
    check_target(target, overwrite=False)
    unchanged, chosen = chosen_candidate(context, source, candidate)
    form = chosen_format(context, chosen, program, form)
    library = context.existing_library()
    unchanged.check_library(library)
    what = f"materialize {'healed' if healed else candidate} in {target}"
    with context.folder.locked() if own else nullcontext(), context.reporter.stage(what):
        return write_checkpoint(
            context.loaded,
            library,
            chosen,
            target,
            format=form,
            weights=weights,
            healed=source,
            notes=healed_notes(source),
            predicted=costs_of(context.space, chosen),
        )


def heal(
    path: Path | str,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    force: bool = False,
    reporter: Reporter | None = None,
) -> Path:
    """Distils the dense model into a run's checkpoint.

    Trains on text of ``heal.source`` that library, search and held-out part have not, by default
    the text behind them; a few sequences of it choose the best checkpoint. With ``executor: ray``
    this is done in a task on the cluster, whose nodes must see the folder. Where torchrun or
    accelerate have started several processes, each calls this, and they share the work.

    Args:
        path: The run's folder, with a checkpoint.
        overrides: Changes of the configuration, such as ``heal.tokens=500_000``.
        resume: Go on where an interrupted healing stopped.
        force: Go on under other circumstances (versions, device, threads); ``heal.json`` and the
            report say so.
        reporter: Told about progress.

    Returns:
        The healed checkpoint's folder.

    Raises:
        EvoCompressError: Anything that the user can mend.
    """
    with joined():
        told = reporter if is_first() else Silent()
        context = stages.to_be_healed(path, overrides, told)
        if context.config.executor == "ray":
            from evocompress.distributed.healing import heal_on_ray

            heal_on_ray(context, overrides, resume, force)
            return context.folder.healed_checkpoint
        return stages.heal(context, resume=resume, force=force)


def evaluate(
    path: Path | str, overrides: Sequence[str] = (), *, reporter: Reporter | None = None
) -> Path:
    """Compares dense, uniform, searched and (where there is one) healed on held-out text.

    Args:
        path: The run's folder, with a checkpoint.
        overrides: Changes of the configuration, such as ``evaluate.repeats=9``.
        reporter: Told about progress.

    Returns:
        The path of evaluation.json.

    Raises:
        EvoCompressError: Anything that the user can mend.
    """
    context = finished(path, reporter, overrides, ("evaluate.", *HELDOUT))
    context.reporter.log_to(context.folder.log)
    return evaluation_stage.evaluate(context)


def report(path: Path | str) -> Path:
    """Writes report.html and summary.md of a run or of rounds, or a sweep's sweep.html and .json.

    Raises:
        RunError: The folder is neither a run nor rounds nor a sweep.
    """
    from evocompress.report import (  # they load plotly
        write_report,
        write_rounds_report,
        write_sweep_report,
    )

    path = Path(path)
    if RoundsFolder(path).config_file.exists():
        return write_rounds_report(path)
    if SweepFolder(path).config_file.exists():
        return write_sweep_report(path)
    return write_report(path)


def _context(config: RunConfig, reporter: Reporter | None) -> RunContext:
    """The context of a run that need not have a folder."""
    folder, told = RunFolder(config.folder), reporter or Silent()
    return RunContext(config, folder, told, backend=backend_of(config))
