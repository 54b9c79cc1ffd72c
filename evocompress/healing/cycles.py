"""Healing for as long as it pays, in cycles of the learning rate that double in length.

Warm restarts (SGDR, 1608.03983): each cycle begins with the checkpoint of the one before and ends
at a low rate, so its end is what a healing with all tokens until then would be good for. To these
ends a law is fitted, and when it foretells less than a least gain from the next cycle, it is over.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from torch import Tensor

from evocompress.core.checked_lines import lines, sealed
from evocompress.core.config import HealConfig
from evocompress.core.files import write_json, write_text
from evocompress.core.processes import by_first
from evocompress.core.progress import Told, tell_nobody
from evocompress.healing.averaging import heal
from evocompress.healing.distill import HealReport
from evocompress.healing.law import LEAST_POINTS, HealingLaw, fit_law
from evocompress.healing.recipe import sized_for
from evocompress.healing.state import HealFolder
from evocompress.models.loading import LoadedModel

FIRST_TOKENS = 16_384
"""Of the first cycle."""

CYCLES = "cycles"
"""The folder of the single healings."""


def heal_in_cycles(
    student: Path,
    teacher: LoadedModel,
    take: Callable[[int], Tensor],
    validation: Tensor,
    config: HealConfig,
    out: Path,
    *,
    dense: LoadedModel | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Told | None = None,
) -> HealReport:
    """Heals a checkpoint with as many tokens as bring something, at most ``heal.most_tokens``.

    Args:
        student: Folder of the checkpoint.
        teacher: The dense model, or another one of its vocabulary.
        take: Gives the next sequences (N, S), at most so many; fewer where the text ends.
        validation: Token ids (M, S) that `take` does not give.
        config: The recipe.
        out: The folder; the cycles are kept in ``cycles`` below it.
        dense: The model that the checkpoint was made of, where that is not the teacher.
        resume: Continue what was begun in `out`.
        force: Continue also under other circumstances.
        progress: Told about each step; the total is that of the present cycle.

    Raises:
        EvoCompressError: As `distil`.
    """
    if not resume:
        HealFolder(out).check_new()
    began, told = time.monotonic(), progress or tell_nobody
    length = teacher.length(validation)
    config = sized_for(teacher, config, length)
    reports: list[HealReport] = []
    ended = False
    while not ended and not _is_over(reports, config):
        cycle = len(reports)

        def tell(done: float, total: float, text: str, cycle: int = cycle) -> None:
            told(done, total, f"cycle {cycle + 1}, {text}")

        of_cycle = config.model_copy(update={"tokens": FIRST_TOKENS * 2**cycle}).at(length)
        train = take(of_cycle.sequences)
        ended = len(train) < of_cycle.sequences
        if ended:  # with what is left, and no repetition
            steps = len(train) // (config.accumulate * config.micro_batch) or int(not cycle)
            if not steps:
                break
            of_cycle = of_cycle.model_copy(update={"steps": steps})
            train = train[: of_cycle.sequences]
        folder = out / CYCLES / str(cycle)
        source = Path(reports[-1].checkpoint) if reports else student
        given = (source, teacher, train, validation, of_cycle, folder)
        again = resume and folder.exists()
        reports.append(heal(*given, dense=dense, resume=again, force=force, progress=tell))
    seconds = time.monotonic() - began
    return by_first(lambda: _summed_up(reports, out, seconds))


def _law(reports: Sequence[HealReport]) -> tuple[HealingLaw | None, int]:
    """The law of the cycles until now, if it can be fitted, and their tokens."""
    points, tokens = [], 0
    for report in reports:
        tokens += report.tokens
        points.append((tokens, report.best_kl))
    return (fit_law(reports[0].initial_kl, points) if reports else None), tokens


def tokens_that_pay(law: HealingLaw, config: HealConfig) -> int:
    """After how many tokens a healing in cycles ends that goes as a law says."""
    ends = [FIRST_TOKENS]
    while (further := 2 * ends[-1] + FIRST_TOKENS) <= config.most_tokens and (
        len(ends) < LEAST_POINTS or _brings(law, ends[-1], law.kl(ends[-1]), config)
    ):
        ends.append(further)
    return ends[-1]


def _brings(law: HealingLaw, tokens: int, known: float, config: HealConfig) -> bool:
    """Whether twice the tokens lower the KL that is known by the least gain."""
    return law.kl(2 * tokens) <= (1 - config.least_gain) * known


def _is_over(reports: Sequence[HealReport], config: HealConfig) -> bool:
    """Whether the next cycle would bring too little, or have too many tokens."""
    law, tokens = _law(reports)
    if tokens + FIRST_TOKENS * 2 ** len(reports) > config.most_tokens and reports:
        return True
    return law is not None and not _brings(law, tokens, reports[-1].best_kl, config)


def _summed_up(reports: Sequence[HealReport], out: Path, seconds: float) -> HealReport:
    """Puts the last checkpoint, the whole history and the summary into the folder."""
    whole, last = HealFolder(out), reports[-1]
    shutil.rmtree(whole.checkpoint, ignore_errors=True)
    shutil.copytree(last.checkpoint, whole.checkpoint)
    records, steps = [], 0
    for number, report in enumerate(reports):
        of_cycle = [
            json.loads(line.content)
            for line in lines(HealFolder(out / CYCLES / str(number)).history)
        ]
        records += [
            record | {"step": record["step"] + steps} for record in of_cycle[bool(number) :]
        ]
        steps += report.steps
    write_text(whole.history, b"".join(map(sealed, records)).decode())
    law, tokens = _law(reports)
    report = replace(
        last,
        checkpoint=str(whole.checkpoint),
        steps=steps,
        tokens=tokens,
        initial_kl=reports[0].initial_kl,
        best_step=steps - last.steps + last.best_step,
        seconds=seconds,
        law=law,
        next_kl=None if law is None else law.kl(2 * tokens),
    )
    write_json(whole.report, asdict(report))
    return report
