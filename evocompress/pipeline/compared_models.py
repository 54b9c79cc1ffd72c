"""The candidates and checkpoints of a finished run: which there are and how they are named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedModel

from evocompress.compression.library import Library
from evocompress.core.errors import RunError
from evocompress.core.foreign_text import as_code
from evocompress.core.leftovers import scratch_folder
from evocompress.core.types import Candidate
from evocompress.export import (
    FORMATS,
    PROGRAMS,
    check_format,
    check_program,
    check_weights,
    choose_for,
    read_candidate,
)
from evocompress.export import materialize as write_checkpoint
from evocompress.export.formats import TypedFormat
from evocompress.export.healed import read_candidate_model
from evocompress.export.reload import check_tokenizer
from evocompress.pipeline.comparison import ComparedModel
from evocompress.pipeline.context import RunContext
from evocompress.pipeline.finished import Unchanged
from evocompress.pipeline.journal import read_candidates
from evocompress.pipeline.resolve import check_place
from evocompress.pipeline.results import costs_of, saved_by_types
from evocompress.pipeline.run_folder import RunFolder
from evocompress.pipeline.winner import row_names
from evocompress.space import sampling


def even_candidate(context: RunContext) -> Candidate:
    """The even candidates of the budget, and of the winner's cost in each objective."""
    space = context.space
    costs = costs_of(space, context.folder.read_winner().candidate)
    bounds = {name: costs[name] for name in context.objectives}
    space = replace(space, budget=space.budget | bounds)
    return space.candidate(sampling.uniform(space))


def named_candidate(context: RunContext, name: str) -> Candidate:
    """``winner``, ``uniform``, or a candidate of the journal by its id.

    Raises:
        RunError: There is none.
    """
    if name == "uniform":
        return even_candidate(context)
    winner = context.folder.read_winner()
    if name in ("winner", winner.id):
        return winner.candidate
    known = read_candidates(context.folder.journal)
    if name in known:
        return known[name]
    raise RunError(f"{context.folder.journal} has no candidate '{name}'; 'winner' is the best one")


def chosen_candidate(
    context: RunContext, source: Path | None, candidate: str
) -> tuple[Unchanged, Candidate]:
    """The candidate of a healed checkpoint, or the one that is named; the model is the run's."""
    if not source and candidate != "uniform":
        named_candidate(context, candidate)  # an unknown one is told before the model is loaded
    unchanged = Unchanged(context)
    unchanged.check_model()
    if source:
        unchanged.check_checkpoint(source)
    return unchanged, read_candidate(source) if source else named_candidate(context, candidate)


def healed_source(folder: RunFolder, out: Path | None, candidate: str = "winner") -> Path:
    """The healed checkpoint of a run, to be written again elsewhere.

    Raises:
        RunError: There is none, `out` is not said, or another candidate is asked for.
    """
    if candidate != "winner":
        raise RunError("--healed and --candidate exclude each other: only the checkpoint is healed")
    if not is_healed(folder):
        raise RunError(f"{folder.path} has no healed checkpoint: run 'evocompress heal' first")
    if out is None:
        raise RunError("--healed writes a second checkpoint: say where with --out")
    return folder.healed_checkpoint


def healed_notes(source: Path | None) -> list[str]:
    """What a checkpoint's README says of the healed one whose weights it has, if there is one."""
    if source is None:
        return []
    name = as_code(str(source))
    return [f"The weights were healed by a distillation of the dense model: {name}."]


def check_form(form: str, program: str | None, weights: str | None) -> None:
    """Refuses a format, program or type of weights that there is not."""
    check_format(form)
    if program is not None:
        check_program(program, form)
    if weights is not None:
        check_weights(weights)


def chosen_format(context: RunContext, candidate: Candidate, program: str | None, form: str) -> str:
    """The format that a candidate is to be written in: `form`, unless that is ``auto``.

    Then the program that is to load the checkpoint decides, and the reason is told; by default
    that is the one which the search was for, if any, or its format (``space.fits``).
    """
    fits = context.config.space.fits
    if program is None and form == "auto" and fits is not None:
        if fits not in PROGRAMS:
            unread = "; heal and evaluate read another: --for transformers"
            note = unread if isinstance(FORMATS[fits], TypedFormat) else ""
            context.reporter.say(f"format '{fits}', as space.fits says{note}")
            return fits
        program = fits
    if program is None:
        return form
    choice = choose_for(context.loaded, candidate, program, form)
    context.reporter.say(choice.reason)
    return choice.name


def check_healing(context: RunContext) -> None:
    """Refuses to heal what is not there.

    Raises:
        RunError: The run has no checkpoint.
        ConfigError: A setting names something that there is not.
    """
    check_there(context.folder)
    check_place(context.config)


def own_checkpoint(context: RunContext, unchanged: Unchanged) -> str:
    """The id of the candidate of the run's checkpoint; one that is not the winner's is told.

    Raises:
        RunError: The run has no checkpoint, or one of another model or level library.
    """
    folder = context.folder
    check_there(folder)
    found, winner = unchanged.check_checkpoint(folder.checkpoint), folder.read_winner().id
    if found != winner:
        context.reporter.say(
            f"{folder.checkpoint} is of candidate {found}, not of the winner {winner}: where that "
            "is not meant, remove it and run 'evocompress materialize'"
        )
    return found


def check_there(folder: RunFolder) -> None:
    """Refuses a run without a checkpoint."""
    if not folder.checkpoint.exists():
        raise RunError(f"{folder.checkpoint} does not exist: run 'evocompress materialize' first")


def models_to_compare(
    context: RunContext, library: Library | None, unchanged: Unchanged
) -> dict[str, ComparedModel]:
    """Dense, uniform, searched and, where there is one, healed, by their names.

    A checkpoint of another candidate than the winner is named after that candidate.

    Raises:
        RunError: The run has no checkpoint, or one of another model or level library.
        ModelError: A checkpoint is damaged, or has another tokenizer or vocabulary.
    """
    folder, space = context.folder, context.space
    names = row_names(own_checkpoint(context, unchanged), folder.read_winner().id)
    dense = context.loaded.model
    uniform = even_candidate(context)
    chosen = read_candidate(folder.checkpoint)
    searched, saved = costs_of(space, chosen), saved_by_types(space, chosen)
    with scratch_folder(folder.path, "uniform") as scratch:
        written = write_checkpoint(context.loaded, library, uniform, scratch / "uniform")
        uniform_model = read_candidate_model(written, context.loaded)
    rows = {
        "dense": ComparedModel(dense, space.cost_model.dense()),
        "uniform": ComparedModel(
            uniform_model, costs_of(space, uniform), saved_by_types(space, uniform)
        ),
        names["searched"]: ComparedModel(_read(context, folder.checkpoint), searched, saved),
    }
    if is_healed(folder):
        unchanged.check_checkpoint(folder.healed_checkpoint)
        healed = _read(context, folder.healed_checkpoint)
        rows[names["healed"]] = ComparedModel(healed, searched, saved)
    return rows


def _read(context: RunContext, path: Path) -> PreTrainedModel:
    """A checkpoint of the run's folder, which reads text as the dense model does."""
    model = read_candidate_model(path, context.loaded)
    check_tokenizer(path, context.loaded)
    return model


def is_healed(folder: RunFolder) -> bool:
    """Whether a finished healing of the present checkpoint is there."""
    return folder.heal_report.exists() and (
        read_candidate(folder.healed_checkpoint) == read_candidate(folder.checkpoint)
    )
