"""Several healings of one checkpoint and their average, of which every zero is still zero.

Sparse model soups (2306.16788, after Model Soups, 2203.05482): healings that differ in the order
of their text end near enough to one another that their weights can be averaged. The soup is greedy:
a healing is taken into it if the validation KL of the average falls.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evocompress.core.config import HealConfig
from evocompress.core.files import write_json
from evocompress.core.processes import by_first, first_goes_ahead
from evocompress.core.progress import Told, tell_nobody
from evocompress.healing.absent import absent
from evocompress.healing.distill import HealReport, distil
from evocompress.healing.distillation import Distillation
from evocompress.healing.recipe import sized_for
from evocompress.healing.state import HealFolder
from evocompress.healing.student import load_student, write_student
from evocompress.healing.targets import Lessons
from evocompress.healing.top_k import keep_lessons
from evocompress.models.loading import LoadedModel

MEMBERS = "members"
"""The folder of the healings that are averaged."""

TARGETS = "targets"
"""The folder of what a teacher said, until all is learnt."""


def heal(
    student: Path,
    teacher: LoadedModel,
    train: Tensor,
    validation: Tensor,
    config: HealConfig,
    out: Path,
    *,
    dense: LoadedModel | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Told | None = None,
) -> HealReport:
    """Heals a checkpoint once, or several times and averages; see `distil` for all of it.

    The healings that are averaged are kept in ``members`` below `out`; ``heal.jsonl`` then is the
    best one's. With ``heal.top_k`` what the teacher says of the text is kept in ``targets`` until
    all of them are finished, and the blocks of teacher and dense model take no memory then.
    """
    given: Any = {"dense": dense, "resume": resume, "force": force}
    told = progress or tell_nobody
    config = sized_for(teacher, config, teacher.length(train))
    one = partial(_heal, student, teacher, train, validation, config, out, told, **given)
    if not resume:
        HealFolder(out).check_new()
    if config.top_k is None:
        return one(lessons=None)
    kept = out / TARGETS
    places = [member(config, out, number)[1] for number in range(config.average)]
    each = places if config.average > 1 else [out]
    wanted = None if all(HealFolder(place).report.exists() for place in each) else train
    with first_goes_ahead():
        lessons = keep_lessons(teacher, wanted, validation, config, kept, told)
    others = [] if dense is None or dense is teacher else [dense]
    with absent([teacher, *others], out):
        report = one(lessons=lessons)
    by_first(lambda: shutil.rmtree(kept, ignore_errors=True))
    return report


def _heal(
    student: Path,
    teacher: LoadedModel,
    train: Tensor,
    validation: Tensor,
    config: HealConfig,
    out: Path,
    told: Told,
    *,
    dense: LoadedModel | None,
    resume: bool,
    force: bool,
    lessons: Lessons | None,
) -> HealReport:
    """One healing, or several and their average, from a teacher that is there or was heard."""
    one = partial(distil, student, teacher, train, validation, dense=dense, force=force)
    one = partial(one, lessons=lessons)
    if config.average == 1:
        return one(config, out, resume=resume, progress=told)
    began, count = time.monotonic(), config.average
    members = [member(config, out, number) for number in range(count)]
    reports = _each(one, members, told, resume=resume)
    best = min(range(count), key=lambda number: reports[number].best_kl)
    measure = partial(
        Distillation,
        teacher=teacher,
        tokens=validation,
        batch=config.micro_batch,
        family=(dense or teacher).family,
        targets=lessons.validation if lessons else None,
    )
    averaged, taken, kl = _soup(reports, dense or teacher, measure)
    note = (
        f"The average of {len(taken)} of {count} healings: validation KL {kl:.4g}, "
        f"of the best one {reports[best].best_kl:.4g}."
    )
    whole = HealFolder(out)
    report = replace(
        reports[best],
        checkpoint=str(whole.checkpoint),
        tokens=sum(report.tokens for report in reports),
        best_kl=kl,
        final_kl=kl,
        seconds=time.monotonic() - began,
        members=tuple(report.best_kl for report in reports),
        averaged=tuple(taken),
    )

    def write() -> None:
        write_student(averaged, student, whole.checkpoint, note, (dense or teacher).widened)
        shutil.copy(HealFolder(members[best][1]).history, whole.history)
        write_json(whole.report, asdict(report))

    by_first(write)
    return report


def _each(
    one: Callable[..., HealReport],
    members: Sequence[tuple[HealConfig, Path]],
    told: Told,
    *,
    resume: bool,
) -> list[HealReport]:
    """What healings one after the other report."""
    reports, count = [], len(members)
    for number, (own, place) in enumerate(members):

        def tell(done: float, total: float, text: str, number: int = number) -> None:
            told(number * total + done, count * total, f"{number + 1} of {count}: {text}")

        again = resume and place.exists()
        reports.append(one(own, place, resume=again, progress=tell))
    return reports


def member(config: HealConfig, out: Path, number: int) -> tuple[HealConfig, Path]:
    """The settings of one of the healings that are averaged, and its folder."""
    own = config.model_copy(update={"average": 1, "seed": config.seed + number})
    return own, out / MEMBERS / str(number)


def _soup(
    reports: Sequence[HealReport],
    dense: LoadedModel,
    measure_of: Callable[[PreTrainedModel], Distillation],
) -> tuple[PreTrainedModel, list[int], float]:
    """The average, which healings are in it, and its validation KL."""
    order = sorted(range(len(reports)), key=lambda number: reports[number].best_kl)
    model = load_student(Path(reports[order[0]].checkpoint), dense)
    measure = measure_of(model)
    taken, best = [order[0]], reports[order[0]].best_kl
    first = _weights(model)
    total = {name: torch.zeros_like(weight) for name, weight in first.items()}
    for number in order[1:]:
        one = _weights(load_student(Path(reports[number].checkpoint), dense))
        trial = {name: moved + (one[name] - first[name]) for name, moved in total.items()}
        _set_weights(model, first, trial, len(taken) + 1)
        kl = measure.mean()
        if kl < best:
            best, total = kl, trial
            taken.append(number)
    _set_weights(model, first, total, len(taken))
    return model, taken, best


def _weights(model: PreTrainedModel) -> dict[str, Tensor]:
    return {
        name: parameter.detach().to(torch.float32, copy=True)
        for name, parameter in model.named_parameters()
    }


@torch.no_grad()
def _set_weights(
    model: PreTrainedModel, first: Mapping[str, Tensor], moved: Mapping[str, Tensor], count: int
) -> None:
    """Sets means by the sums of the differences to one of them: what no healing moved stays."""
    for name, parameter in model.named_parameters():
        parameter.copy_(first[name] + moved[name] / count)
