"""A teacher that is trained on the text of the healing before anything is learnt from it.

Minitron in practice (2408.11796): on another text than its own a teacher guides badly, so it is
first fine-tuned there, with a fifth of the learning rate ("teacher correction").
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from math import ceil
from pathlib import Path

import torch
from torch import Tensor

from evocompress.core.config import HealConfig
from evocompress.core.errors import ConfigError
from evocompress.core.files import make_folder
from evocompress.core.leftovers import scratch_folder
from evocompress.core.processes import by_first
from evocompress.core.progress import Told
from evocompress.core.types import Candidate
from evocompress.export.checkpoint import materialize
from evocompress.healing.absent import absent
from evocompress.healing.distill import distil
from evocompress.healing.student import load_student
from evocompress.healing.targets import Lessons, next_tokens
from evocompress.models.loading import LoadedModel, fingerprint

RATE = 0.2
"""Of the healing's learning rate."""


def check_adaptable(loaded: LoadedModel, tokens: int | None) -> None:
    """Refuses to train a model on next tokens that tells none.

    Raises:
        ConfigError: It does something else.
    """
    task = loaded.family.task
    if tokens is not None and not task.by_position:
        raise ConfigError(
            f"heal.adapt_teacher={tokens} trains on the next token, but {loaded.source} is a model "
            f"for {task.name}: unset it"
        )


def sequences_for(config: HealConfig, length: int) -> int:
    """How many sequences of a length the teacher is trained on."""
    return ceil((config.adapt_teacher or 0) / length)


def adapt_teacher(
    teacher: LoadedModel,
    train: Tensor,
    validation: Tensor,
    config: HealConfig,
    out: Path,
    *,
    resume: bool = False,
    force: bool = False,
    progress: Told | None = None,
) -> LoadedModel:
    """The teacher after a training on next tokens; the one that is given is not changed.

    The training is a healing of the whole teacher with another loss: `out` holds what a healing's
    folder does, with the mean cross-entropy of the next tokens in the place of the KL.

    Args:
        teacher: The dense model, or another one.
        train: Token ids (N, S), which are repeated where they are fewer than
            ``heal.adapt_teacher`` tokens.
        validation: Token ids (M, S), which choose the best step.
        config: The healing's recipe.
        out: The folder.
        resume: Continue what was begun in `out`.
        force: Continue also under other circumstances.
        progress: Told about each step.

    Raises:
        EvoCompressError: As `distil`, or the model does not tell the next token.
    """
    check_adaptable(teacher, config.adapt_teacher)
    length = teacher.length(train)
    own = _recipe(config.sized(length)).at(length)
    texts = (torch.split(part, own.micro_batch) for part in (train, validation))
    lessons = Lessons(*map(next_tokens, texts))
    make_folder(out.parent)
    with ExitStack() as stack:

        def copied() -> Path:
            scratch = stack.enter_context(scratch_folder(out.parent, "untaught"))
            return materialize(teacher, None, Candidate(), scratch / "checkpoint")

        before = by_first(copied)
        with absent([teacher], before.parent):
            distil(
                before,
                teacher,
                train,
                validation,
                own,
                out,
                resume=resume and out.exists(),
                force=force,
                progress=progress,
                lessons=lessons,
            )
    model = load_student(out / "checkpoint", teacher)
    model.requires_grad_(False)
    source = f"{teacher.source}, adapted to the text"
    return replace(teacher, model=model, source=source, fingerprint=fingerprint(model), cache=None)


def _recipe(config: HealConfig) -> HealConfig:
    """How the teacher is trained: as the student, but for the loss, in all its weights."""
    return HealConfig(
        tokens=config.adapt_teacher,
        batch=config.batch,
        accumulate=config.accumulate,
        checkpointing=config.checkpointing,
        optimizer=config.optimizer,
        learning_rate=RATE * config.learning_rate,
        warmup=config.warmup,
        weight_decay=config.weight_decay,
        clip=config.clip,
        evaluate_every=config.evaluate_every,
        seed=config.seed,
    )
