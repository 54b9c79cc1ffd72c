"""The family of a model of which nothing is known but its linear matrices.

Storing a matrix coarser, or with zeros, takes no knowledge of what is around it. The whole model
is one block here: it is called with a batch, and what it puts out is compared.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import normalize
from transformers import PreTrainedConfig, PreTrainedModel

from evocompress.core.architecture import Architecture
from evocompress.core.errors import ModelError, one_line
from evocompress.models.config_keys import class_key
from evocompress.models.families.base import Family
from evocompress.models.families.branches import ABSENT, Matrix, SubLayer, SubLayerName
from evocompress.models.families.derivation.family import HEAD, NO_LIMIT
from evocompress.models.families.derivation.purpose import (
    LENGTH,
    check_called,
    task_of_output,
    tasks_of,
    tiny_batch,
)
from evocompress.models.families.derivation.shrink import CONTEXT_KEYS
from evocompress.models.families.derivation.stream import LINEAR
from evocompress.models.families.derivation.structure import Unclear
from evocompress.models.families.derivation.tracing import FAILURES
from evocompress.models.families.names import BlockNames
from evocompress.models.families.retasked import makes_scores, with_task
from evocompress.models.families.uneven import text_config
from evocompress.models.tasks import SCORES, Task


class MatricesAlone(Family):
    """A model whose matrices can be stored coarser or get zeros, and nothing else.

    Args:
        model_type: Of the config.
        task: What its models are for.
        alone: Why nothing else can be done, in words.
        path: Of the module that has the matrices.
        matrices: Those that are run, in the order of computation.

    Examples:
        >>> from transformers import SwinConfig, SwinForImageClassification
        >>> config = SwinConfig(embed_dim=16, depths=[1, 1], num_heads=[1, 2], image_size=56)
        >>> family = matrices_alone(SwinForImageClassification, config, "it has stages")
        >>> family.block_names[0], len(family.matrices)
        ('swin', 13)
    """

    def __init__(
        self, model_type: str, task: Task, alone: str, path: str, matrices: Sequence[Matrix]
    ) -> None:
        self.model_type = model_type
        self.task = task
        self.alone = alone
        self.layers_path = path
        self.norm_path = ""
        self.attention = ABSENT
        self.mlp = SubLayer(tuple(matrices), (), "", narrowable=False)
        self.unused = HEAD if task.compared == "embeddings" else ""

    @property
    def limits(self) -> list[str]:
        """What cannot be done to the model, and why."""
        return [f"nothing but types of weights and zeros: {self.alone}"]

    @property
    def block_names(self) -> BlockNames:
        """The name of the only block."""
        return _OneName(self.layers_path)

    def bound(self, model: PreTrainedModel) -> Family:
        """With one output, or several that do not exclude each other, a classifier's are scores."""
        if self.task.causal or self.task.compared == "embeddings":
            return self
        return with_task(self, SCORES) if self.task.reads_text and makes_scores(model) else self

    def blocks(self, model: PreTrainedModel) -> nn.ModuleList:
        """The whole model as one block."""
        return nn.ModuleList([_Whole(self.task, model, self.layers_path)])

    def architecture(self, model: PreTrainedModel) -> Architecture:
        """Counts of parameters; nothing is known of heads and caches, nor of operations."""
        body = model.get_submodule(self.layers_path)
        weights = [body.get_parameter(f"{matrix.path}.weight") for matrix in self.matrices]
        inner = sum(parameter.numel() for parameter in body.parameters())
        head = model.get_output_embeddings()
        embedding = getattr(model.get_input_embeddings(), "weight", None)
        return Architecture(
            hidden=max(weight.shape[-1] for weight in weights),
            vocabulary=0 if head is None else head.weight.shape[0],
            tied=head is not None and head.weight is embedding,
            outer_params=sum(parameter.numel() for parameter in model.parameters()) - inner,
            heads=(0,),
            kv_heads=(0,),
            head_dim=0,
            channels=(0,),
            windows=(None,),
            own_params=((0, inner - sum(weight.numel() for weight in weights)),),
            dtype_bytes=model.dtype.itemsize,
            context=self._context(model),
            causal=False,
            one_way=False,
            uncounted=self.layers_path,
            tokens=0 if self.task.reads_text else 1,
        )

    def hidden_states(self, model: PreTrainedModel, batch: Tensor) -> Tensor:
        """What is compared, (B, S, V) or (B, C): no states between are known."""
        return _compared(self.task, model, batch)

    def outputs(self, model: PreTrainedModel, hidden: Tensor) -> Tensor:
        """The same."""
        return hidden

    def block_inputs(
        self, model: PreTrainedModel, batch: Tensor
    ) -> tuple[Tensor, list[dict[str, Any]]]:
        """The batch; token ids as numbers that can have a gradient, exact below 2**24."""
        return batch.float() if self.task.reads_text else batch, [{}]

    def _droppable(self, block: nn.Module, sublayer: SubLayerName | None = None) -> bool:
        """Never: it is the whole model."""
        return False

    def _context(self, model: PreTrainedModel) -> int:
        lengths = (getattr(text_config(model.config), key, None) for key in CONTEXT_KEYS)
        return next((length for length in lengths if isinstance(length, int)), NO_LIMIT)


class _OneName(BlockNames):
    """The name of a block that is not in a list."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._name = path

    def __getitem__(self, index: int) -> str:
        return self._name

    @property
    def pattern(self) -> str:
        """A regular expression that matches it."""
        return self._name.replace(".", r"\.")


class _Whole(nn.Module):
    """Has the modules of a part of a model, also when they are replaced, and runs the whole."""

    def __init__(self, task: Task, model: PreTrainedModel, path: str) -> None:
        super().__init__()
        body = model.get_submodule(path)
        self._modules, self._parameters = body._modules, body._parameters
        # In a tuple, so that the model does not become a part of its part.
        self._home = (task, model)

    def forward(self, state: Tensor) -> Tensor:
        """What the model makes of a batch, see `MatricesAlone.block_inputs`."""
        task, model = self._home
        batch = state.detach().long() if task.reads_text else state
        found = _compared(task, model, batch)
        # Nothing is differentiated by the batch, but whoever asks shall find it.
        return found + 0 * state.sum() if state.requires_grad else found


def _compared(task: Task, model: PreTrainedModel, batch: Tensor) -> Tensor:
    output = task.run(model, batch)
    if task.compared == "embeddings":
        return normalize(task.pooled(output), dim=-1)
    logits: Tensor = output.logits
    return logits


_KNOWN: dict[str, MatricesAlone | str] = {}
"""The family of a class with a config, as text; or why there is none."""


def alone_or_reason(
    cls: type[PreTrainedModel], config: PreTrainedConfig, why: str
) -> MatricesAlone | str:
    """The family of the matrices of a model, of whose blocks `why` says why they have none."""
    key = class_key(cls, config)
    if key not in _KNOWN:
        try:
            _KNOWN[key] = matrices_alone(cls, config, why)
        except (Unclear, ModelError) as reason:
            _KNOWN[key] = str(reason)
    return _KNOWN[key]


def matrices_alone(
    cls: type[PreTrainedModel], config: PreTrainedConfig, alone: str
) -> MatricesAlone:
    """The family of a model class with a config, for which no other can be derived.

    Args:
        cls: Of models of a task that is supported.
        config: Of the model.
        alone: Why no other can be.

    Raises:
        Unclear: It cannot be called with token ids or images alone, or has no matrices.
    """
    served = (
        task
        for task, names in tasks_of(config.model_type)
        if cls.__name__ in names and (task.causal or task.input == cls.main_input_name)
    )
    task = next(served, None)
    if task is None:
        raise Unclear(f"no task is known that {cls.__name__} serves")
    check_called(cls, config, task)
    if "decoder_input_ids" in signature(cls.forward).parameters:
        raise Unclear("it is an encoder with a decoder, which reads another text")
    try:
        twin, calls, output = _called(cls, config, task)
    except FAILURES as error:
        raise Unclear(f"its class does not run without values ({one_line(error)})") from None
    path = _home(twin, calls)
    task = task_of_output(task, output)
    names = Counter(id(p) for _, p in twin.named_parameters(remove_duplicate=False))
    matrices = [
        Matrix(name.removeprefix(f"{path}."), "mlp", word, transposed=transposed)
        for name, (word, transposed) in calls.items()
        if name.startswith(f"{path}.") and names[id(twin.get_parameter(f"{name}.weight"))] == 1
    ]
    return MatricesAlone(config.model_type, task, alone, path, matrices)


@torch.no_grad()
def _called(
    cls: type[PreTrainedModel], config: PreTrainedConfig, task: Task
) -> tuple[PreTrainedModel, dict[str, tuple[str, bool]], Any]:
    """A model without values, and what it puts out.

    Between them the linear modules that are run, in their order, each with a word for what it reads
    and whether it stores (in, out).
    """
    plain = copy.deepcopy(config)
    plain._attn_implementation = "eager"
    plain._experts_implementation = "batched_mm"  # by no values that are looked at
    with torch.device("meta"):
        twin = cls(plain).eval()
    found: dict[str, tuple[str, bool]] = {}
    seen: list[Tensor] = []  # kept, so that no other tensor gets the number of one of them

    def note(name: str, module: nn.Module) -> None:
        def hook(_: nn.Module, given: tuple[Any, ...]) -> None:
            if not given or not _reads_each_token(task, given[0]):
                return
            if name not in found:
                seen.append(given[0])
                place = next(i for i, one in enumerate(seen) if one is given[0])
                found[name] = (f"input_{place}", not isinstance(module, nn.Linear))
            else:  # what it reads is not one tensor
                found[name] = (name, found[name][1])

        module.register_forward_pre_hook(hook)

    batch = tiny_batch(task, twin)
    # Other than meta tensors these are of a device, so that a class may make some of its own.
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        twin.to_empty(device="cpu")
        batch = mode.from_tensor(batch if task.reads_text else batch.float())
        for name, module in twin.named_modules():
            if isinstance(module, LINEAR):
                note(name, module)
        output = task.run(twin, batch)
    return twin, found, output


def _reads_each_token(task: Task, given: Any) -> bool:
    """Whether a module is given the (1, `LENGTH`) tokens that were tried, or parts of an image."""
    if not isinstance(given, Tensor):
        return False
    return not task.reads_text or given.shape[:-1].numel() == LENGTH


def _home(twin: PreTrainedModel, calls: dict[str, tuple[str, bool]]) -> str:
    """The path of the module whose matrices are compressed: the body of a model with a head.

    Of one without a head it is the part that has most weights in linear modules.

    Raises:
        Unclear: No linear module is run within one.
    """
    base: Any = twin.base_model
    path: str = next(name for name, module in twin.named_modules() if module is base)
    if not path:
        sizes = Counter[str]()
        for name in calls:
            sizes[name.partition(".")[0]] += twin.get_parameter(f"{name}.weight").numel()
        path = next((name for name, _ in sizes.most_common(1)), "")
    if not any(name.startswith(f"{path}.") for name in calls):
        raise Unclear("it runs no linear modules")
    return path
