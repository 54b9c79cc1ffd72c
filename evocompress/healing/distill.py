"""Heals a compressed model by distilling the dense model's distribution into it.

Minitron's recipe for mild compression (Muralidharan et al. 2024, 2407.14679): the loss is
KL(teacher‖student) of the logits alone at temperature 1, without cross-entropy.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from evocompress.core.circumstances import Circumstances
from evocompress.core.config import HealConfig
from evocompress.core.environment import environment
from evocompress.core.errors import ConfigError, DataError, HealingDiverged
from evocompress.core.files import checksum_of, write_json
from evocompress.core.processes import by_first, check_same, of_all, own_part, process_count
from evocompress.core.progress import Told, tell_nobody
from evocompress.export.folder import check_room
from evocompress.export.layout import layout
from evocompress.export.parts import PARTS_FILE
from evocompress.export.record import read_candidate
from evocompress.healing.distillation import Distillation
from evocompress.healing.law import HealingLaw
from evocompress.healing.layers import LayerLoss, matching
from evocompress.healing.masters import Masters
from evocompress.healing.optimizers import MOMENT_BYTES
from evocompress.healing.recipe import recipe, sized_for
from evocompress.healing.schedule import learning_rate, micro_batch_indices
from evocompress.healing.state import Best, HealFolder, StepRecord
from evocompress.healing.student import load_student, write_student
from evocompress.healing.targets import Lessons
from evocompress.healing.trained import prepare_training, through_rounding
from evocompress.healing.typed import Through, typed_parameters
from evocompress.models.loading import LoadedModel


@dataclass(frozen=True)
class HealReport:
    """How a healing went; written as ``heal.json``.

    Where the model gives embeddings, their distance stands in the place of the KL.

    Attributes:
        checkpoint: Folder of the best model.
        steps: Optimizer steps.
        tokens: Training tokens, repeats included.
        initial_kl: Validation KL of the student as it came, in nats per position.
        best_kl: Validation KL of the best checkpoint.
        best_step: After which step that was; 0 if healing never helped.
        final_kl: Validation KL after the last step; ``None`` if it is not finite.
        seconds: Time of the last process that worked on it.
        members: Validation KL of every healing, where several were averaged.
        averaged: Which of them are in the average.
        law: How the KL fell with the tokens, where several healings tell.
        next_kl: Validation KL that it foretells of twice the tokens.
        measure: What all these KL are, in words.
        circumstances: Under what it was begun (versions, device, threads), and from which steps it
            was made to go on under others.

    Examples:
        >>> HealReport("checkpoint", 100, 204800, 0.5, 0.2, 100, 0.2, 60.0, {}).best_kl
        0.2
    """

    checkpoint: str
    steps: int
    tokens: int
    initial_kl: float
    best_kl: float
    best_step: int
    final_kl: float | None
    seconds: float
    circumstances: Mapping[str, Any]
    members: tuple[float, ...] = ()
    averaged: tuple[int, ...] = ()
    law: HealingLaw | None = None
    next_kl: float | None = None
    measure: str = ""


def distil(
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
    lessons: Lessons | None = None,
) -> HealReport:
    """Distils the teacher into a compressed checkpoint; what is zero in its matrices stays zero.

    Writes into `out`: ``checkpoint`` (the step that was best on `validation`, in the student's
    format), ``heal.jsonl`` (the history), ``heal.json`` (the report) and ``state`` (what a
    resumed healing continues from; it then ends in exactly the same weights).

    Args:
        student: Folder of a checkpoint that `evocompress.export.materialize` wrote.
        teacher: The dense model, or another one of its vocabulary; it is not changed.
        train: Token ids (N, S).
        validation: Token ids (M, S) that are not in `train`.
        config: The recipe, in steps (`HealConfig.at`).
        out: The folder.
        dense: The model that the checkpoint was made of, where that is not the teacher.
        resume: Continue what was begun in `out`.
        force: Continue also under other circumstances: versions, device, threads.
        progress: Told about each step.
        lessons: What the student is compared with instead of what the teacher gives.

    Raises:
        RunError: `out` holds another healing or one that was begun under other circumstances,
            or the loss is not finite; the best checkpoint so far is kept.
        DataError: There are no training or validation sequences.
        ModelError: `student` is not such a checkpoint.
        ConfigError: It has nothing of what the configuration says to train.
        ExportError: The disk is full.
    """
    began = time.monotonic()
    config = sized_for(teacher, config, teacher.length(train))
    models = (dense or teacher, teacher)
    healing = _Healing(student, models, train, validation, config, HealFolder(out), lessons)
    healing.begin_or_resume(resume, force)
    healing.run(progress or tell_nobody)
    return healing.report(time.monotonic() - began)


def check_shared_out(config: HealConfig, processes: int) -> None:
    """Refuses a number of processes that cannot have the same number of micro-batches each.

    Raises:
        ConfigError: It does not divide them.

    Examples:
        >>> check_shared_out(HealConfig(accumulate=4), processes=2)
    """
    if config.accumulate % processes:
        raise ConfigError(
            f"heal.accumulate={config.accumulate} is how many micro-batches a step has, and they "
            f"are shared out among {processes} processes: set it to a multiple of {processes}"
        )


class _Healing:
    """The state of one healing: weights, history and the best step so far."""

    def __init__(
        self,
        source: Path,
        models: tuple[LoadedModel, LoadedModel],
        train: Tensor,
        validation: Tensor,
        config: HealConfig,
        folder: HealFolder,
        lessons: Lessons | None,
    ) -> None:
        if not len(train) or not len(validation):
            raise DataError(
                f"healing needs sequences to train ({len(train)} given) and to choose the best "
                f"step ({len(validation)} given)"
            )
        check_shared_out(config, process_count())
        self.source = source
        self.config = config
        self.folder = folder
        dense, teacher = models
        self.student = load_student(source, dense)
        self.dtype = dense.widened
        self.recipe = recipe(self.student, teacher, train, validation, config)
        asked = config.steps * config.accumulate * config.micro_batch
        self.train = Distillation(
            self.student,
            teacher,
            train,
            config.micro_batch,
            again=asked > len(train),
            next_token=config.next_token,
            layers=self._layers(dense, teacher) if config.states else None,
            family=dense.family,
            targets=lessons.train if lessons else None,
        )
        self.validation = Distillation(
            self.student,
            teacher,
            validation,
            config.micro_batch,
            family=dense.family,
            targets=lessons.validation if lessons else None,
        )
        whose, targets = (
            "the dense model" if teacher is dense else teacher.source,
            self.validation.targets,
        )
        self.learnt = f"Distilled from {whose}" if targets.taught else "Trained on text"
        self.measure = f"{targets.measure} to {whose}" if targets.taught else targets.measure
        self.typed = typed_parameters(source, dense, self.student)
        self.masters = self._masters(dense)
        self.circumstances = Circumstances.model_validate(
            environment(teacher.model.device, teacher.model.dtype, "local")
            | {"processes": process_count()}
        )
        self.history: list[StepRecord] = []
        self.best = Best(0, math.inf)

    def _masters(self, dense: LoadedModel) -> Masters:
        """Of what is trained, some of it through its rounding."""
        levels, config = self.typed.levels, self.config
        learnt = through_rounding(self.student, dense.family, config, levels)
        weights = self.typed.through_rounding(self.student, learnt)
        if weights:
            self.recipe |= {"integers and scales": checksum_of(self.source / PARTS_FILE)}
        zeros = prepare_training(self.student, dense.family, config, levels, learnt)
        return Masters(self.student, zeros, config, Through(self.typed, weights))

    def _layers(self, dense: LoadedModel, teacher: LoadedModel) -> LayerLoss:
        """What is compared within the models."""
        if dense is not teacher:
            raise ConfigError(
                "heal.states compares the states after each block, which another teacher than the "
                "dense model may not have: leave heal.states or heal.teacher out"
            )
        family = teacher.family
        ours, theirs = family.blocks(self.student), family.blocks(teacher.model)
        blocks = layout(teacher, read_candidate(self.source)).blocks
        gone = frozenset(block.index for block in blocks if block.gone)
        pairs = matching(len(theirs), gone, len(ours))
        return LayerLoss(ours, theirs, pairs, self.config.states)

    def begin_or_resume(self, resume: bool, force: bool) -> None:
        """Measures the student, or continues from the newest training state."""
        if not resume:
            self.folder.check_new()
        state = self.folder.latest()
        check_same((self.recipe, state), "healing")
        if state is None:
            weights = sum(parameter.numel() for parameter in self.student.parameters())
            # Two training states and the best checkpoint.
            each = 4 + 2 * (4 + MOMENT_BYTES[self.config.optimizer])
            check_room(self.folder.path, int(weights * each))
            self._measure(StepRecord(0, None, None, None))
            if not math.isfinite(self.best.kl):
                raise HealingDiverged(f"{self.source} cannot be healed: its KL is not finite")
        else:
            tensors, known = self.folder.load(state, self.recipe)
            self.history, self.best = list(known.history), known.best
            if known.circumstances is None or self.history[-1].step < self.config.steps:
                self.circumstances = self.folder.going_on(known, self.circumstances, force)
            else:  # there is nothing left to compute
                self.circumstances = known.circumstances
            if tensors:
                self.masters.load_state(tensors)

    def run(self, progress: Told) -> None:
        """Trains to the last step."""
        steps, every = self.config.steps, self.config.evaluate_every
        began, tokens = time.monotonic(), 0
        for step in range(self.history[-1].step, steps):
            record = self._train_step(step)
            if record.step % every == 0 or record.step == steps:
                self._measure(record)
            else:
                self.history.append(record)
            tokens += self._tokens(step)
            speed = tokens / max(1e-9, time.monotonic() - began)
            told = f"loss {record.train_loss:.4g}, best {self.best.kl:.4g}, {speed:,.0f} tokens/s"
            progress(record.step, steps, told)

    def report(self, seconds: float) -> HealReport:
        """Sums up a finished healing and writes ``heal.json``."""
        measured = [r.validation_kl for r in self.history if r.validation_kl is not None]
        report = HealReport(
            checkpoint=str(self.folder.checkpoint),
            steps=self.config.steps,
            tokens=sum(self._tokens(step) for step in range(self.config.steps)),
            initial_kl=measured[0],
            best_kl=self.best.kl,
            best_step=self.best.step,
            final_kl=self.history[-1].validation_kl,
            seconds=seconds,
            circumstances=self.circumstances.model_dump(mode="json"),
            measure=self.measure,
        )
        by_first(lambda: write_json(self.folder.report, asdict(report)))
        return report

    def _tokens(self, step: int) -> int:
        indices = micro_batch_indices(step, len(self.train), self.config)
        return sum(self.train.tokens(index) for index in indices)

    def _train_step(self, step: int) -> StepRecord:
        """One optimizer step, from 0."""
        indices = micro_batch_indices(step, len(self.train), self.config)
        positions = sum(self.train.positions(index) for index in indices)
        losses = {}
        for place in own_part(len(indices)):
            losses[place] = self.train.backward(indices[place], 1 / positions) / positions
            self.masters.collect_gradients()
        loss = sum(of_all(losses, len(indices)))
        norm = self.masters.clip_gradients()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise HealingDiverged(
                f"healing diverged at step {step + 1} (loss {loss}, gradient norm {norm}): lower "
                f"heal.learning_rate; the best step so far, {self.best.step}, is in "
                f"{self.folder.checkpoint}"
            )
        rate = learning_rate(step, self.config)
        self.masters.step(rate)
        return StepRecord(step + 1, loss, None, rate)

    def _measure(self, record: StepRecord) -> None:
        """Measures the validation KL, keeps the student if it is the best, saves the state."""
        kl = self.validation.mean()
        finite = math.isfinite(kl)
        self.history.append(replace(record, validation_kl=kl if finite else None))
        if finite and kl < self.best.kl:
            self.best = Best(record.step, kl)
            written = (self.source, self.folder.checkpoint, self._note(), self.dtype)
            trained = self.masters.rounded()
            by_first(lambda: write_student(self.student, *written, parts=self.typed.parts(trained)))
        if record.step:
            finished = record.step == self.config.steps
            tensors = {} if finished else self.masters.state()
            known = (self.history, self.best, self.recipe, self.circumstances)
            by_first(lambda: self.folder.save(tensors, *known))

    def _note(self) -> str:
        initial = self.history[0].validation_kl
        return (
            f"{self.learnt} for {self.best.step} steps: {self.measure} on validation sequences "
            f"{initial:.4g} before, {self.best.kl:.4g} after."
        )
