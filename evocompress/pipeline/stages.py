"""The stages that also run on a cluster, searching and healing, wherever their work is done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from evocompress.core.config import RunConfig
from evocompress.core.errors import ConfigError
from evocompress.core.processes import by_first, check_device, is_first, process_count
from evocompress.core.progress import Reporter, Silent
from evocompress.evaluation.calibration.fresh import FreshText, repetition
from evocompress.healing import heal as distil
from evocompress.healing import heal_in_cycles
from evocompress.healing.adapting import sequences_for
from evocompress.healing.averaging import member as member_of
from evocompress.healing.distill import check_shared_out
from evocompress.healing.state import HealFolder
from evocompress.pipeline.checks import check_inputs
from evocompress.pipeline.compared_models import check_healing, own_checkpoint
from evocompress.pipeline.context import Backend, RunContext
from evocompress.pipeline.early_checks import check_early
from evocompress.pipeline.finished import Unchanged, finished
from evocompress.pipeline.known_parts import check_healed
from evocompress.pipeline.loop import Listener
from evocompress.pipeline.resolve import check_names
from evocompress.pipeline.run_folder import RunFolder, begin_run
from evocompress.pipeline.run_folder import check_run as check_folder
from evocompress.pipeline.search_stage import find
from evocompress.pipeline.short_healing import short_recipe, sized_healing
from evocompress.pipeline.teacher import adapted, teacher_for


def search(
    config: RunConfig,
    backend: Backend,
    *,
    resume: bool = False,
    force: bool = False,
    reporter: Reporter | None = None,
    listener: Listener | None = None,
) -> Path:
    """Searches; see `evocompress.api.search`."""
    if config.rounds > 1:
        raise ConfigError(f"rounds: {config.rounds} rounds are made by 'evocompress rounds'")
    check_names(config)
    folder = check_folder(config, resume)
    context = RunContext(config, folder, reporter or Silent(), backend=backend)
    check_early(config)
    check_inputs(context)
    recipe = short_recipe(config, context.loaded, context.calibration, context.reporter)
    begin_run(folder, config)
    with folder.locked():
        context.reporter.log_to(folder.log)
        find(context, listener, recipe=recipe, force=force)
    return folder.path


def to_be_healed(
    path: Path | str, overrides: Sequence[str], reporter: Reporter | None
) -> RunContext:
    """The context of a run whose checkpoint can be healed.

    Raises:
        EvoCompressError: It cannot.
    """
    context = finished(path, reporter, overrides, ("heal.",))
    check_healing(context)
    check_shared_out(context.config.heal, process_count())
    check_device(context.config.model.device)
    if is_first():
        context.reporter.log_to(context.folder.log)
    return context


def heal(context: RunContext, *, resume: bool, force: bool, member: int | None = None) -> Path:
    """Heals the checkpoint of a run in this process, or some; see `evocompress.api.heal`.

    With `member` only one of the healings that are averaged is made, and the folder is not locked:
    others make theirs at the same time.
    """
    folder = context.folder
    check_early(context.config, search=False, folder=folder)
    unchanged = Unchanged(context)
    unchanged.check_model()
    own_checkpoint(context, unchanged)
    check_healed(context.loaded.family)
    dense, calibration = context.loaded, unchanged.check_text()
    cut, config = context.config.calibration, sized_healing(context.config, context.loaded)
    teacher = teacher_for(context.config, dense)
    text = FreshText(config, cut, dense, calibration)
    go_on: Any = {"resume": resume, "force": force}
    how = {"dense": dense, **go_on}
    source, out = folder.checkpoint, folder.healing
    first = sequences_for(config, calibration.length)
    with nullcontext() if member is not None else _locked(folder):
        if not resume:
            HealFolder(out).check_new()
        adapt = partial(adapted, teacher, config=config, out=out, reporter=context.reporter)
        if config.tokens == "auto":
            validation = text.take(config.validation_sequences)
            teacher = adapt(text.take(first) if first else validation, validation, **go_on)
            take = partial(text.take, some=False)
            with context.reporter.stage("heal") as advance:
                heal_in_cycles(
                    source, teacher, take, validation, config, out, progress=advance, **how
                )
            return folder.healed_checkpoint
        config = config.at(calibration.length)
        with context.reporter.stage("text for healing"):
            wanted = max(config.sequences, first)
            train, validation = text.take_both(wanted, config.validation_sequences)
        teacher = adapt(train[:first], validation, **go_on)
        train = train[: config.sequences]
        if note := repetition(config.sequences, len(train), config, cut.source):
            context.reporter.say(note)
        if member is not None:
            config, out = member_of(config, out, member)
            how["resume"] = resume and out.exists()
        with context.reporter.stage("heal") as advance:
            distil(source, teacher, train, validation, config, out, progress=advance, **how)
    return folder.healed_checkpoint


@contextmanager
def _locked(folder: RunFolder) -> Iterator[None]:
    """Keeps others than the processes that work together out of a folder."""
    with ExitStack() as stack:
        by_first(lambda: stack.enter_context(folder.locked()))
        yield
