"""Short healings of the last candidates of a search: their text, their recipe and their making."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from evocompress.core.config import HealConfig, HealLastConfig, RunConfig
from evocompress.core.errors import ConfigError, HealingDiverged
from evocompress.core.progress import Reporter
from evocompress.evaluation.calibration.calibration import Calibration
from evocompress.evaluation.calibration.fresh import FreshText, repetition
from evocompress.healing import heal
from evocompress.healing.recipe import digest, sized_for
from evocompress.models.loading import LoadedModel
from evocompress.pipeline.journal_memory import ShortHealing
from evocompress.pipeline.teacher import teacher_for

HEALED = "healed"
"""The folder of a candidate's short healing, beside its checkpoint."""

DIVERGED = "the loss of the short healing, or its KL, was not finite"


@dataclass(frozen=True, eq=False)
class ShortRecipe:
    """What every one of the last candidates is healed with.

    Attributes:
        config: The settings, in steps.
        train: Token ids (N, S), or images (N, C, H, W).
        validation: The same (M, S) that the candidates are judged on; none of them is trained on,
            nor is any in the library, search or held-out part.
    """

    config: HealConfig
    train: Tensor
    validation: Tensor

    @property
    def facts(self) -> dict[str, Any]:
        """What the values depend on beside the candidate and the model."""
        return {
            "configuration": self.config.model_dump(mode="json"),
            "training data": digest(self.train),
            "validation data": digest(self.validation),
        }


HealEach = Callable[[LoadedModel, Sequence[Path], ShortRecipe, bool], Iterator[ShortHealing]]
"""Heals checkpoints of the loaded dense model, in order; forced under other circumstances."""


def sized_healing(config: RunConfig, loaded: LoadedModel) -> HealConfig:
    """The settings of a run's healing, with as many sequences a micro-step as the model takes."""
    return sized_for(loaded, config.heal, loaded.tokens or config.calibration.length)


def check_short_healing(
    last: HealLastConfig | None, heal: HealConfig, length: int, objectives: Sequence[str]
) -> None:
    """Refuses a short healing that is none, or that has no winner to choose.

    Args:
        last: The short healing, if there is one.
        heal: The long one, sized.
        length: Tokens of a sequence.
        objectives: The costs that span the front which the searcher is to find.

    Raises:
        ConfigError: The tokens are fewer than one step takes, or a front is searched.
    """
    if last is None:
        return
    if objectives:
        raise ConfigError(
            "search.heal_last chooses one winner, and this search is for a front of "
            f"{', '.join(objectives)}: leave it out, and heal the candidates that you take"
        )
    step = heal.micro_batch * heal.accumulate * length
    if last.tokens < step:
        raise ConfigError(
            f"search.heal_last.tokens: {last.tokens:,} are less than one step of the healing "
            f"takes, which is {step:,} (heal.batch {heal.micro_batch} x heal.accumulate "
            f"{heal.accumulate} x {length} tokens): raise it, or lower heal.batch"
        )


def short_recipe(
    config: RunConfig, loaded: LoadedModel, calibration: Calibration, reporter: Reporter
) -> ShortRecipe | None:
    """The recipe with its text, which is the beginning of what `heal` will have.

    ``None`` where no candidates are to be healed.

    Raises:
        DataError: There is no text for it.
    """
    last, cut = config.search.heal_last, config.calibration
    if last is None:
        return None
    short = last.short(sized_healing(config, loaded)).at(calibration.length)
    text = FreshText(short, cut, loaded, calibration)
    with reporter.stage("text for the last candidates"):
        train, validation = text.take_both(short.sequences, short.validation_sequences)
    if note := repetition(short.sequences, len(train), short, cut.source):
        reporter.say(note)
    return ShortRecipe(short, train, validation)


def heal_each(
    config: RunConfig,
    reporter: Reporter,
    loaded: LoadedModel,
    students: Sequence[Path],
    recipe: ShortRecipe,
    force: bool,
) -> Iterator[ShortHealing]:
    """Heals checkpoints in this process, one after the other; what is there goes on."""
    teacher = teacher_for(config, loaded)
    for student in students:
        with reporter.stage(f"heal {student.parent.name} for a short time") as advance:
            out = student.parent / HEALED
            try:
                report = heal(
                    student,
                    teacher,
                    recipe.train,
                    recipe.validation,
                    recipe.config,
                    out,
                    dense=loaded,
                    resume=out.exists(),
                    force=force,
                    progress=advance,
                )
                found = ShortHealing(report.initial_kl, report.best_kl)
            except HealingDiverged:
                found = ShortHealing(None, None, DIVERGED)
        yield found
