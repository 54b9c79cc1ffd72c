"""What a healing learns from: the dense model, or another one that the settings name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from evocompress.core.config import HealConfig, RunConfig
from evocompress.core.errors import ModelError
from evocompress.core.progress import Reporter
from evocompress.export.reload import same_tokens
from evocompress.healing import adapt_teacher
from evocompress.models.families.uneven import text_config
from evocompress.models.loading import LoadedModel, load_as


def teacher_for(config: RunConfig, dense: LoadedModel) -> LoadedModel:
    """The model of ``heal.teacher``, or the dense one.

    Raises:
        ModelError: It cannot be loaded, does something else, or its outputs mean other tokens.
    """
    source = config.heal.teacher
    if source is None:
        return dense
    teacher = load_as(config.model.model_copy(update={"source": source}))
    if teacher.family.task != dense.family.task:
        other, own = teacher.family.task.name, dense.family.task.name
        raise ModelError(
            f"heal.teacher: {source} is a model for {other}, and {dense.source} one for {own}: "
            "name one for the same"
        )
    words, known = (_outputs(one) for one in (teacher, dense))
    if words != known:
        raise ModelError(
            f"heal.teacher: {source} has {words} outputs, and {dense.source} has {known}: name a "
            "model with the same vocabulary"
        )
    ours, theirs = dense.tokenizer, teacher.tokenizer
    if ours is not None and theirs is not None and not same_tokens(ours, theirs):
        raise ModelError(
            f"heal.teacher: {source} has another tokenizer than {dense.source}: name a model with "
            "the same"
        )
    return teacher


def adapted(
    teacher: LoadedModel,
    train: Tensor,
    validation: Tensor,
    config: HealConfig,
    out: Path,
    reporter: Reporter,
    **how: Any,
) -> LoadedModel:
    """The teacher, trained on text first where ``heal.adapt_teacher`` says so.

    Raises:
        EvoCompressError: As `evocompress.healing.adapt_teacher`.
    """
    if config.adapt_teacher is None:
        return teacher
    with reporter.stage("teacher") as advance:
        given = (teacher, train, validation, config, out / "teacher")
        return adapt_teacher(*given, progress=advance, **how)


def _outputs(loaded: LoadedModel) -> int:
    """How many outputs a position, or a sequence, has."""
    head = loaded.model.get_output_embeddings()
    if head is not None:
        return len(head.weight)
    config: Any = loaded.model.config
    compared = loaded.family.task.compared
    return int(text_config(config).hidden_size if compared == "embeddings" else config.num_labels)
