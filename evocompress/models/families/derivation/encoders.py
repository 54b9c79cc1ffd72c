"""The families of models that are no causal language models, as they are derived."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForMaskedLM, AutoModelForPreTraining, PreTrainedModel

from evocompress.core.architecture import Architecture
from evocompress.models.dummy_inputs import image_shape
from evocompress.models.families.base import Family, final_norm
from evocompress.models.families.derivation.block_kind import Kind
from evocompress.models.families.derivation.ending import norm_path
from evocompress.models.families.derivation.family import Derived
from evocompress.models.families.derivation.purpose import Ending, tiny_batch
from evocompress.models.families.derivation.shrink import CONTEXT, random_model
from evocompress.models.families.derivation.stream import is_norm
from evocompress.models.families.derivation.structure import Unclear
from evocompress.models.families.derivation.tracing import (
    FAILURES,
    TracedBlock,
    first_tensor,
    moved_positions,
    nudged,
)
from evocompress.models.families.encoder import check_classes, embedding
from evocompress.models.families.logits import LogitKeys
from evocompress.models.families.retasked import makes_scores, with_task
from evocompress.models.families.shapes import attention_windows
from evocompress.models.families.stand_ins import Recorder, among_others
from evocompress.models.modeling.modeling_derived import model_classes
from evocompress.models.tasks import EMBEDDINGS, SCORES, Task

PUBLISHED = (AutoModelForMaskedLM, AutoModelForPreTraining)
"""The classes of transformers with whose heads embedding models are published."""

WINDOW = 3
"""Tokens of the windows of a tiny model by which it is seen what they mean."""

LENGTHS = (8, 16)
"""Tokens of the texts by which it is seen what a model computes outside its blocks."""


NO_ENDING = Ending()


class DerivedEncoder(Derived):
    """A model without a head for tokens: what is compared is the outcome of a whole sequence.

    What lies behind the blocks is not known in parts. It is the class itself that makes the
    outputs: it is run with blocks that compute nothing, behind which the hidden states are put.
    """

    def __init__(
        self,
        model_type: str,
        layers_path: str,
        norm_path: str,
        among: int,
        logit_keys: LogitKeys,
        kinds: Sequence[Kind],
        order: Sequence[int],
        two_way: bool,
        task: Task,
        ending: Ending = NO_ENDING,
        calls: Sequence[int] = (),
    ) -> None:
        blocks = layers_path, norm_path, among, logit_keys, kinds, order
        super().__init__(model_type, *blocks, two_way, task, calls=calls)
        self.ending = ending
        self.unused = ending.unused

    def bound(self, model: PreTrainedModel) -> Family:
        """With one output, or several that do not exclude each other, a classifier's are scores."""
        if self.task.compared == "embeddings" or not self.task.reads_text:
            return self
        scores = replace(self.task, name=SCORES.name, compared=SCORES.compared)
        return with_task(self, scores) if makes_scores(model) else self

    def check(self, model: PreTrainedModel) -> None:
        """Refuse images' outputs that are no classes, and blocks that are built otherwise."""
        super().check(model)
        if self.task.compared == "logits" and not self.task.reads_text:
            check_classes(model)

    def architecture(self, model: PreTrainedModel) -> Architecture:
        """See `Family.architecture`; what is computed outside the blocks is counted by running."""
        found = super().architecture(model)
        if not self.task.reads_text:
            tokens, flops = self._outside(model, _blank(self, model, 1, 1))
            return replace(found, outer_flops=flops, tokens=tokens, context=tokens, vocabulary=0)
        few, many = LENGTHS
        counts = [self._outside(model, _blank(self, model, 1, n))[1] for n in LENGTHS]
        each = (counts[1] - counts[0]) // (many - few)
        return replace(
            found,
            windows=tuple(window and window + self.ending.reach for window in found.windows),
            outer_flops=counts[0] - each * few,
            token_flops=found.token_flops + each,
            vocabulary=0,
        )

    def _token_flops(self, model: PreTrainedModel) -> int:
        """See `Derived._token_flops`; none, as `_outside` counts them."""
        return 0

    def _outside(self, model: PreTrainedModel, batch: Tensor) -> tuple[int, int]:
        """Tokens of a batch of one sequence, and the operations on it outside the blocks."""
        counting = FlopCounterMode(display=False)
        with self._blocks_passing(model) as recorders, torch.no_grad(), counting:
            model(**self.task.inputs(batch, model.dtype))
        return recorders[0].hidden.shape[1], int(counting.get_total_flops())

    def _context(self, model: PreTrainedModel) -> int:
        """See `Family._context`."""
        less: int = model.config.pad_token_id + 1 if self.ending.after_padding else 0
        return super()._context(model) - less - self.ending.shorter

    def hidden_states(self, model: PreTrainedModel, batch: Tensor) -> Tensor:
        """See `Family.hidden_states`."""
        found: list[Tensor] = []
        hook = self._end(model).register_forward_hook(
            lambda _, __, output: found.append(first_tensor(output))
        )
        try:
            model(**self.task.inputs(batch, model.dtype))
        finally:
            hook.remove()
        return found[-1]

    def outputs(self, model: PreTrainedModel, hidden: Tensor) -> Tensor:
        """The embeddings (B, H) of unit length, or the logits (B, C) of the classes."""
        if self.task.compared == "embeddings" and self.task.pooling != "pooler":
            return embedding(hidden, self.task.pooling)
        batch = _blank(self, model, *hidden.shape[:2])
        with self._blocks_passing(model):
            among = 0 if self.norm_path else self.among
            end = self._end(model)
            hook = end.register_forward_hook(lambda *_: among_others(hidden, among))
            try:
                output = self.task.run(model, batch)
            finally:
                hook.remove()
        if self.task.compared == "embeddings":
            return normalize(self.task.pooled(output), dim=-1)
        logits: Tensor = output.logits
        return logits

    def _end(self, model: PreTrainedModel) -> nn.Module:
        """The module that yields the final hidden states."""
        return final_norm(self, model) if self.norm_path else self.blocks(model)[-1]

    @contextmanager
    def _blocks_passing(self, model: PreTrainedModel) -> Iterator[list[Recorder]]:
        """A model whose blocks compute nothing, for a while."""
        blocks = self.blocks(model)
        originals = list(blocks)
        recorders = [Recorder(block, self.among) for block in originals]
        try:
            for index, recorder in enumerate(recorders):
                blocks[index] = recorder
            yield recorders
        finally:
            for index, block in enumerate(originals):
                blocks[index] = block


def _blank(family: Derived, model: PreTrainedModel, sequences: int, tokens: int) -> Tensor:
    """A batch of any content."""
    if not family.task.reads_text:
        return torch.zeros(sequences, *image_shape(model), device=model.device)
    padding: Any = getattr(model.config, "pad_token_id", None)
    return torch.full((sequences, tokens), int(padding == 0), device=model.device)


def encoder(
    model: PreTrainedModel,
    path: str,
    examples: Sequence[TracedBlock],
    batch: Tensor,
    among: int,
    kinds: Sequence[Kind],
    order: Sequence[int],
    task: Task,
    calls: Sequence[int],
) -> DerivedEncoder:
    """The family of a tiny model whose blocks are known; see `Derived`.

    Args:
        model: The model.
        path: Of its list of blocks.
        examples: The blocks.
        batch: What they were run with.
        among: See `Derived`.
        kinds: Of the blocks.
        order: Of the real model, the index of each block's kind.
        task: What it is for.
        calls: See `Derived`.

    Raises:
        Unclear: What it makes of the final states is not understood.
    """
    norm = norm_path(model, examples[-1].run(), task.inputs(batch))
    if norm and not is_norm(model.get_submodule(norm)):
        norm = ""
    # Positions are counted from behind the padding token's id, or begin at some number.
    shorter = _shorter(model) if task.reads_text else 0
    after_padding = shorter > 0 and shorter == model.config.pad_token_id + 1
    ending = Ending(
        after_padding=after_padding,
        shorter=0 if after_padding else shorter,
    )
    common = model.config.model_type, path, norm, among, LogitKeys(), kinds, order
    two_way = any(map(_sees_later, examples))
    found = DerivedEncoder(*common, two_way, task, ending, calls)
    _check_outputs(found, model, batch)
    unused, reach = _unused(found, model, batch), _reach(found, model, batch)
    ending = replace(ending, unused=unused, reach=reach)
    return DerivedEncoder(*common, two_way, task, ending, calls)


def _sees_later(example: TracedBlock) -> bool:
    """Whether the last token changes what a block makes of one before it."""
    return any(_moved_by(example, -1)[:-1])


def _moved_by(example: TracedBlock, position: int) -> list[bool]:
    """For each position whether a block's output changes there with the input at one position."""
    other = replace(example, hidden=nudged(example.hidden, position))
    return moved_positions(example.run(), other.run())


def _reach(family: DerivedEncoder, model: PreTrainedModel, batch: Tensor) -> int:
    """By how many tokens more than the config says a layer with a window sees.

    Raises:
        Unclear: By less than none, or by more than one.
    """
    config: Any = copy.deepcopy(model.config)
    if not any(attention_windows(config, len(family.order))):
        return 0
    config.sliding_window = WINDOW
    other = random_model(type(model), config)
    hidden, arguments = family.block_inputs(other, batch)
    windows = attention_windows(config, len(arguments))
    blocks = zip(family.blocks(other), arguments, windows, strict=True)
    found = {
        sum(_moved_by(TracedBlock(block, hidden, given), 0)) - window
        for block, given, window in blocks
        if window is not None
    }
    if not found <= {0, 1} or len(found) > 1:
        raise Unclear("its layers with windows see other tokens than its config says")
    return max(found, default=0)


def _shorter(model: PreTrainedModel) -> int:
    """By how many tokens the longest sequence is shorter than the config says.

    Raises:
        Unclear: It is much shorter.
    """
    if getattr(model.config, "max_position_embeddings", None) != CONTEXT:
        return 0
    for less in range(4):
        batch = tiny_batch(EMBEDDINGS, model, CONTEXT - less)
        with suppress(IndexError, RuntimeError):
            model(**EMBEDDINGS.inputs(batch))
            return less
    raise Unclear("it takes no sequence as long as its config says")


def _unused(family: DerivedEncoder, model: PreTrainedModel, batch: Tensor) -> str:
    """A regular expression of the tensors with which nothing that is compared is computed.

    Of embeddings that are pooled here those are all of the modules that run behind the final
    states, and of the heads with which checkpoints are published; of other models those of modules
    that do not run.
    """
    own_head = family.task.compared == "logits"
    body, ran, ended = model.base_model if own_head else model, [""], [0]
    with ExitStack() as stack:
        for path, module in body.named_modules():
            name = path.partition(".")[0]
            stack.callback(
                module.register_forward_pre_hook(lambda *_, name=name: ran.append(name)).remove
            )
        end = family._end(model)
        stack.callback(end.register_forward_hook(lambda *_: ended.append(len(ran))).remove)
        model(**family.task.inputs(batch))
    unused = {name for name, _ in body.named_children()} - {*ran}
    if not own_head and family.task.pooling != "pooler":
        unused |= ({*ran[ended[-1] :]} | _heads(model)) - {*ran[: ended[-1]]}
    prefix = rf"(?:{re.escape(model.base_model_prefix)}\.)?"
    names = "|".join(map(re.escape, sorted(unused)))
    return rf"{prefix}(?:{names})(?:\..*|$)" if names else ""


def _heads(model: PreTrainedModel) -> set[str]:
    """The names of what models of a type are trained with beside their body, such as masked ones.

    Embedding models are often published with these.
    """
    found: set[str] = set()
    for auto in PUBLISHED:
        for cls in model_classes(auto, type(model.config)):
            with suppress(*FAILURES), torch.device("meta"):
                every: Any = cls(copy.deepcopy(model.config))
                parameters = (name for name, _ in every.named_parameters(recurse=False))
                children = (name for name, _ in every.named_children())
                found |= {*parameters, *children} - {every.base_model_prefix}
    return found


def _check_outputs(family: DerivedEncoder, model: PreTrainedModel, batch: Tensor) -> None:
    """The outputs must be what the class makes of a batch.

    Raises:
        Unclear: They depend on more than the final states.
    """
    states = family.hidden_states(model, batch)
    output = family.task.run(model, batch)
    if family.task.compared == "embeddings":
        wanted = normalize(family.task.pooled(output), dim=-1)
    else:
        wanted = output.logits
    found = family.outputs(model, states)
    if found.shape != wanted.shape or not torch.allclose(found.double(), wanted.double()):
        raise Unclear("its outputs are not made of the hidden states behind its blocks alone")
