"""The settings of a healing."""

from __future__ import annotations

from math import ceil
from typing import Annotated, Literal

from pydantic import Field, model_validator

from evocompress.core.fields import (
    Many,
    Number,
    Positive,
    Seed,
    Size,
    Source,
    Strict,
    Tokens,
    Trained,
    Weight,
    Whole,
)

STEP_TOKENS = 512
"""Of a micro-step by default: with few tokens to learn from, many small steps bring most."""

STEP_SEQUENCES = 4
"""The most of a micro-step by default, which models have that give one output for a sequence."""


class HealConfig(Strict):
    """Logit distillation from the dense model (Minitron, 2407.14679).

    Attributes:
        teacher: Another model to learn from than the dense one, in the words of `model.source`; its
            tokenizer must be the same. After a search on a compressed model it may be the one that
            was dense at first.
        adapt_teacher: Tokens of the same text that the teacher is trained on first, by the loss of
            the next token; ``None`` takes it as it is.
        top_k: The teacher's likeliest tokens at each position that are kept on disk, with one
            bucket for the rest, so that the teacher need not stay in memory; ``None`` compares with
            all of its logits.
        source: Where its text comes from, in the words of `calibration.source`, or several sources
            with their weights; ``None`` reads on in `calibration.source`. Sequences that library,
            search or held-out part have are passed over.
        steps: Optimizer steps.
        tokens: Training tokens, which decide about the steps where they are given; ``auto`` goes on
            in cycles that double in length until the next one would bring too little:
        least_gain: a smaller share of the validation KL than this,
        most_tokens: or more tokens than these in all.
        batch: Sequences of a micro-step; ``auto`` takes as many as have 512 tokens, but one at
            least and four at most, and four of models that give one output for a sequence.
        accumulate: Micro-steps of an optimizer step.
        train: What is trained, one word or several with commas: ``all`` weights, the ``norms``,
            the ``biases``, the ``head``, the last n blocks (``last:n``), or adapters of low rank
            beside the blocks' matrices (``lora``), which are merged into these; of what has a
            coarser type the ``scales``, its integers as they are.
        straight_through: Train what has a coarser type as well, where `train` names it: its
            weights are rounded in each step, and get the gradients of what they are rounded to.
        lora_rank: Of these adapters.
        next_token: Weight of the cross-entropy of the text's own next tokens beside the KL; only of
            models that tell the next token.
        states: Weight of the differences of the states after each block, as shares of the dense
            model's, beside the KL.
        checkpointing: Keep only the states between blocks for the backward pass, and compute the
            rest of each block again: slower, for much less memory.
        optimizer: ``adamw``, or ``adamw8bit``, whose two moments take one byte each instead of four
            (2110.02861, by torchao).
        learning_rate: Peak, reached after `warmup` and followed by a cosine to a tenth.
        warmup: Fraction of the steps.
        weight_decay: AdamW's.
        clip: Largest gradient norm.
        evaluate_every: Steps between two measurements on the validation sequences.
        validation_sequences: Sequences of its text that choose the best checkpoint and are not
            trained on.
        average: Healings that differ in the order of the text, whose weights are averaged as far as
            that lowers the KL on the validation sequences.
        seed: Order of the sequences, and of the text that the model writes.

    Examples:
        >>> HealConfig(tokens=100_000).sized(512).at(512).steps
        196
    """

    teacher: Source | None = None
    adapt_teacher: Tokens | None = None
    top_k: Annotated[Positive, Field(le=2**24)] | None = None
    source: Source | Annotated[dict[Source, Weight], Field(min_length=1)] | None = None
    steps: Positive = 800
    tokens: Tokens | Literal["auto"] | None = None
    least_gain: Annotated[Number, Field(gt=0, lt=1)] = 0.02
    most_tokens: Tokens = 10_000_000
    batch: Size | Literal["auto"] = "auto"
    accumulate: Size = 1
    train: Trained = ("all",)
    straight_through: bool = False
    lora_rank: Size = 16
    next_token: Annotated[Number, Field(ge=0, le=1000)] = 0.0
    states: Annotated[Number, Field(ge=0, le=1000)] = 0.0
    checkpointing: bool = False
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    learning_rate: Annotated[Number, Field(gt=0, le=1)] = 2e-4
    warmup: Annotated[Number, Field(ge=0, lt=1)] = 0.1
    weight_decay: Annotated[Number, Field(ge=0, le=100)] = 0.0
    clip: Annotated[Number, Field(gt=0, le=1e6)] = 1.0
    evaluate_every: Positive = 100
    validation_sequences: Many = 8
    average: Annotated[Whole, Field(ge=1, le=100)] = 1
    seed: Seed = 0

    @model_validator(mode="after")
    def _states_have_a_teacher(self) -> HealConfig:
        """Refuses to compare states with those of a teacher that has none, or other ones."""
        for key in ("top_k", "adapt_teacher"):
            if self.states and getattr(self, key) is not None:
                raise ValueError(
                    "states compares with the dense model's states after each block, which "
                    f"{key} does without: leave one of them out"
                )
        return self

    @model_validator(mode="after")
    def _averages_are_on_no_grid(self) -> HealConfig:
        """Refuses to average what has to be on a grid."""
        through = "straight_through" if self.straight_through else "train=scales"
        if self.average > 1 and (self.straight_through or "scales" in self.train):
            raise ValueError(
                f"average={self.average} would take weights off the values of their types, which "
                f"{through} trains: leave one of them out"
            )
        return self

    def sized(self, length: int, *, by_position: bool = True) -> HealConfig:
        """The same with a number of sequences for each micro-step.

        Args:
            length: Tokens of a sequence.
            by_position: The model has an output for each token.
        """
        if self.batch != "auto":
            return self
        fitting = max(1, min(STEP_TOKENS // length, STEP_SEQUENCES))
        batch = fitting if by_position else STEP_SEQUENCES
        return self.model_copy(update={"batch": batch})

    @property
    def micro_batch(self) -> int:
        """Sequences of a micro-step, once they are `sized`."""
        assert self.batch != "auto"
        return self.batch

    def at(self, length: int) -> HealConfig:
        """The same with the steps that its tokens take in sequences of this number of tokens.

        Where there is no telling, they are the most.
        """
        if self.tokens is None:
            return self
        tokens = self.most_tokens if self.tokens == "auto" else self.tokens
        steps = ceil(tokens / (self.micro_batch * self.accumulate * length))
        return self.model_copy(update={"steps": steps, "tokens": None})

    @property
    def sequences(self) -> int:
        """How many sequences its steps take."""
        return self.steps * self.accumulate * self.micro_batch

    def sources(self, usual: str) -> dict[str, float]:
        """Where the text comes from, with weights; `usual` where nothing is said."""
        if isinstance(self.source, dict):
            return dict(self.source)
        return {self.source or usual: 1.0}


class HealLastConfig(Strict):
    """A short healing of the last candidates of a search, after which the winner is chosen.

    Attributes:
        candidates: How many are healed: the winner by the proxy and the next best.
        tokens: Training tokens of each.

    Examples:
        >>> HealLastConfig(tokens=2_000).short(HealConfig(average=3)).average
        1
    """

    candidates: Annotated[Whole, Field(ge=2, le=100)] = 4
    tokens: Tokens = 10_000

    def short(self, config: HealConfig) -> HealConfig:
        """The short healing in the way of a long one: once, from the teacher as it is."""
        return config.model_copy(
            update={"tokens": self.tokens, "average": 1, "adapt_teacher": None}
        )
