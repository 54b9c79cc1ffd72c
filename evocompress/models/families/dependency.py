"""Which channels of a CNN go together, as Torch-Pruning's dependency graph tells.

DepGraph (Fang et al. 2023, arXiv 2301.12900) follows a forward pass through convolutions, norms,
sums and reshapes, and finds for each module what must be cut with its outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel

from evocompress.core.errors import ModelError


@dataclass(frozen=True)
class Group:
    """Modules whose channels go together, by name.

    Attributes:
        outputs: Matrices whose outputs the channels are.
        inputs: Matrices that read them.
        norms: Norms that have values for each of them.
        channels: How many there are.
    """

    outputs: tuple[str, ...]
    inputs: tuple[str, ...]
    norms: tuple[str, ...]
    channels: int

    @property
    def modules(self) -> tuple[str, ...]:
        """All of them."""
        return self.outputs + self.inputs + self.norms


def require_torch_pruning(model_type: str) -> None:
    """Refuse a model whose channels cannot be followed, because a package is missing."""
    if find_spec("torch_pruning") is None:
        raise ModelError(
            f"models of type {model_type!r} need Torch-Pruning, which is not installed: "
            "pip install 'evocompress[cnn]'"
        )


def channel_groups(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> list[Group]:
    """All groups of channels of a model in evaluation mode, found with `inputs`, in no order.

    They are followed along its parameters, which must require gradients.
    """
    import torch_pruning

    graph: Any = torch_pruning.DependencyGraph()
    graph.build_dependency(model, dict(inputs), output_transform=lambda output: output.logits)
    names = {id(module): name for name, module in model.named_modules()}
    found = graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear])
    return [_group(graph, group, names) for group in found]


def _group(graph: Any, group: Any, names: Mapping[int, str]) -> Group:
    outputs: list[str] = []
    inputs: list[str] = []
    norms: list[str] = []
    for dependency, _ in group:
        module = dependency.target.module
        name = names.get(id(module))
        if name is None:  # an operation without weights
            continue
        if isinstance(module, _BatchNorm):
            norms.append(name)
        elif graph.is_out_channel_pruning_fn(dependency.handler):
            outputs.append(name)
        else:
            inputs.append(name)
    return Group(tuple(outputs), tuple(inputs), tuple(norms), len(group[0][1]))
