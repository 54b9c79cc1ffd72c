"""The adapter for CNNs of residual blocks, whose coupled channels a dependency graph tells.

A subclass says where the blocks are and what in them is the residual branch. Everything else is
found in the model: `Convolutional.bound` follows a forward pass of a twin without weights and gives
a family for this very model.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from evocompress.core.architecture import Architecture
from evocompress.core.errors import ModelError
from evocompress.core.types import Axis
from evocompress.core.widths import Widths
from evocompress.models.dummy_inputs import image_shape
from evocompress.models.families.base import Family
from evocompress.models.families.branches import ABSENT, Attributes, Matrix, SubLayer, SubLayerName
from evocompress.models.families.coupling import Follower
from evocompress.models.families.dependency import Group, channel_groups, require_torch_pruning
from evocompress.models.families.encoder import check_classes
from evocompress.models.families.names import BlockNames
from evocompress.models.tasks import IMAGE_CLASSES

LINKS: dict[int, tuple[Axis, ...]] = {1: ("channel",), 2: ("inner", "channel")}
"""What the channels between the convolutions of a branch are, by how many such links it has."""


@dataclass(frozen=True)
class Traced:
    """What is known of one model.

    Attributes:
        mlp: The residual branch, the same in every block.
        names: Of the blocks.
        positions: For each block how often each of its matrices is applied to an image.
        droppable: Whether the block without its branch is the identity.
        state: Values of the largest state between two blocks, of one image.
        outer_flops: Operations of an image outside the branches.
    """

    mlp: SubLayer
    names: tuple[str, ...]
    positions: tuple[dict[str, int], ...]
    droppable: tuple[bool, ...]
    state: int
    outer_flops: int


class Convolutional(Family):
    """A CNN: a block is one residual branch of convolutions, and an activation of the sum.

    The branch is the block's MLP, and the channels between its convolutions are its channels. An
    image counts as one token. What the residual stream consists of is not cut: it goes through
    the blocks of a whole stage, to which no single unit belongs.

    Attributes:
        block: A regular expression that matches the names of the blocks.
        branch: Path of the residual branch within a block.
        shortcut: Path of what the stream passes beside the branch, the identity in most blocks.
        activation: Path of the activation of the sum.
    """

    task = IMAGE_CLASSES
    norm_path = ""
    attention = ABSENT
    mlp = ABSENT
    block: ClassVar[str]
    branch: ClassVar[str]
    shortcut: ClassVar[str]
    activation: ClassVar[str]
    traced: Traced

    def check(self, model: PreTrainedModel) -> None:
        """Refuse a model that cannot be followed, or whose outputs are no classes."""
        require_torch_pruning(self.model_type)
        check_classes(model)

    def bound(self, model: PreTrainedModel) -> Self:
        """This family with what is true of one model.

        Raises:
            ModelError: Its blocks are not alike, or their channels are coupled in another way.
        """
        found = copy.copy(self)
        # Operations are followed by their gradients, whoever asks.
        with torch.inference_mode(False), torch.enable_grad():
            found.traced = _Trace(self, model).result()
        # Of this object alone: models of a family differ in their branches.
        found.mlp = found.traced.mlp
        return found

    @property
    def block_names(self) -> BlockNames:
        """The names of the blocks, which lie in several lists."""
        return _StagedNames(self.traced.names, self.block)

    def blocks(self, model: PreTrainedModel) -> nn.ModuleList:
        """The blocks in order; an entry may be replaced in place."""
        return _Blocks(model, block_paths(model, self.block))

    def architecture(self, model: PreTrainedModel) -> Architecture:
        """What the cost model must know; see `Family.architecture`."""
        blocks = list(self.blocks(model))
        none = (0,) * len(blocks)
        total = [sum(parameter.numel() for parameter in block.parameters()) for block in blocks]
        matrices = [sum(self._weight(block, m).numel() for m in self.matrices) for block in blocks]
        channels = tuple(self._weight(block, self.mlp.output).shape[1] for block in blocks)
        return Architecture(
            hidden=min(channels),
            vocabulary=0,
            tied=False,
            outer_params=sum(parameter.numel() for parameter in model.parameters()) - sum(total),
            heads=none,
            kv_heads=none,
            head_dim=0,
            channels=channels,
            windows=(None,) * len(blocks),
            own_params=tuple((0, a - b) for a, b in zip(total, matrices, strict=True)),
            dtype_bytes=model.dtype.itemsize,
            context=1,
            causal=False,
            one_way=False,
            outer_flops=self.traced.outer_flops,
            tokens=1,
            channel_params=tuple(self._params_of_a_channel(block) for block in blocks),
            state=self.traced.state,
        )

    def replacements(self, block: nn.Module, sublayer: SubLayerName) -> dict[str, nn.Module]:
        """See `Family.replacements`; the block adds the shortcut to its zero in place."""
        return {self.activation: nn.Identity(), self.branch: Zeros()}

    def narrowing(self, block: nn.Module, sublayer: SubLayerName, widths: Widths) -> Attributes:
        """Nothing: a convolution takes as many channels as its weight has."""
        return {}

    def outputs(self, model: PreTrainedModel, hidden: Tensor) -> Tensor:
        """The logits (B, C) of the classes, of feature maps (B, F, H, W)."""
        head: Any = model
        logits: Tensor = head.classifier(head.base_model.pooler(hidden))
        return logits

    def _droppable(self, block: nn.Module, sublayer: SubLayerName | None = None) -> bool:
        return isinstance(block.get_submodule(self.shortcut), nn.Identity)

    def _positions(self, index: int, matrix: Matrix) -> int | None:
        return self.traced.positions[index][matrix.path]

    def _weight(self, block: nn.Module, matrix: Matrix) -> Tensor:
        return block.get_parameter(f"{matrix.path}.weight")

    def _params_of_a_channel(self, block: nn.Module) -> int:
        norms = [block.get_submodule(follower.path) for follower in self.mlp.followers]
        return sum(len(list(norm.parameters())) for norm in norms)


class Zeros(nn.Module):
    """Takes the place of a removed branch: zeros that may be added to in place."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Zeros of the shape of `hidden` (B, F, H, W)."""
        return torch.zeros_like(hidden)


def block_paths(model: nn.Module, pattern: str) -> list[str]:
    """The names of the modules that a regular expression matches, in order."""
    return [name for name, _ in model.named_modules() if re.fullmatch(pattern, name)]


class _Blocks(nn.ModuleList):
    """Blocks of several lists as one; to replace an entry replaces the block in the model."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__(model.get_submodule(name) for name in names)
        # In a tuple, so that the model does not become a part of its part.
        self._homes = (model, tuple(names))

    def __setitem__(self, index: int, module: nn.Module) -> None:
        super().__setitem__(index, module)
        model, names = self._homes
        model.set_submodule(names[index], module)


class _StagedNames(BlockNames):
    """The names of blocks that lie in several lists."""

    def __init__(self, names: Sequence[str], pattern: str) -> None:
        self._names = tuple(names)
        self._pattern = pattern

    def __getitem__(self, index: int) -> str:
        return self._names[index]

    @property
    def pattern(self) -> str:
        """A regular expression that matches every name, also in models with other blocks."""
        return self._pattern

    def renamed(self, kept: Sequence[int]) -> Callable[[str], str]:
        """See `BlockNames.renamed`; the blocks of each list are counted anew."""
        counts: dict[str, int] = {}
        old = {}
        for index in kept:
            stage = self._names[index].rpartition(".")[0]
            old[f"{stage}.{counts.setdefault(stage, 0)}"] = self._names[index]
            counts[stage] += 1
        block = re.compile(rf"^({self._pattern})\.")
        return lambda name: block.sub(lambda match: f"{old[match[1]]}.", name)


class _Trace:
    """Follows one image through a twin of a model that has no weights."""

    def __init__(self, family: Convolutional, model: PreTrainedModel) -> None:
        self._family = family
        config = copy.deepcopy(model.config)
        with torch.device("meta"):
            self._twin: PreTrainedModel = type(model)(config).eval().requires_grad_(True)
            pixels = torch.zeros(1, *image_shape(model))
        self._inputs = family.task.inputs(pixels)
        self._names = tuple(block_paths(self._twin, family.block))

    def result(self) -> Traced:
        """What is known of the model."""
        groups = channel_groups(self._twin, self._inputs)
        branches = [self._branch(name, groups) for name in self._names]
        odd = next((i for i, branch in enumerate(branches) if branch != branches[0]), None)
        if odd is not None:
            raise ModelError(
                f"{self._names[odd]} is built otherwise than {self._names[0]}: only models of "
                f"type {self._family.model_type!r} whose blocks are alike are supported"
            )
        shapes = self._shapes()
        return Traced(
            mlp=branches[0],
            names=self._names,
            positions=tuple(
                {m.path: prod(shapes[f"{name}.{m.path}"][2:]) for m in branches[0].matrices}
                for name in self._names
            ),
            droppable=tuple(map(self._family._droppable, self._family.blocks(self._twin))),
            state=max(prod(shapes[name]) for name in self._names),
            outer_flops=self._outer_flops(shapes, branches[0].matrices),
        )

    def _branch(self, block: str, groups: Iterable[Group]) -> SubLayer:
        """The residual branch of a block, with the links between its convolutions."""
        family, prefix = self._family, f"{block}.{self._family.branch}."
        convolutions = self._of_type(prefix, nn.Conv2d)
        links = {
            group.outputs[0]: group
            for group in groups
            if all(name.startswith(prefix) for name in group.modules)
        }
        ordered = [links[name] for name in convolutions if name in links]
        pairs = list(zip(convolutions[:-1], convolutions[1:], strict=True))
        chain = [(link.outputs, link.inputs) for link in ordered]
        even = len({link.channels for link in ordered}) == 1
        if chain != [((one,), (other,)) for one, other in pairs] or not even or len(pairs) > 2:
            raise ModelError(
                f"the channels of {block} do not lie between two or three convolutions in a row, "
                "as many each time and linked to the next one alone, so this "
                f"{family.model_type} model is not supported"
            )
        axes = LINKS[len(pairs)]
        return SubLayer(
            matrices=tuple(self._matrices(block, convolutions, axes)),
            identity_modules=(family.activation,),
            zero_module=family.branch,
            norm_after=family.activation,
            followers=tuple(
                Follower(norm.removeprefix(f"{block}."), axis)
                for axis, link in zip(axes, ordered, strict=True)
                for norm in link.norms
            ),
            gate=self._of_type(prefix, nn.BatchNorm2d)[-1].removeprefix(f"{block}."),
        )

    def _matrices(
        self, block: str, convolutions: Sequence[str], axes: Sequence[Axis]
    ) -> Iterable[Matrix]:
        for place, name in enumerate(convolutions):
            module: Any = self._twin.get_submodule(name)
            if (
                module.groups != 1
                or module.padding_mode != "zeros"
                or isinstance(module.padding, str)
            ):
                raise ModelError(
                    f"{name} is a convolution in groups or with a padding that is not zeros, "
                    "which is not supported"
                )
            yield Matrix(
                name.removeprefix(f"{block}."),
                "mlp",
                f"patches_{place}",
                rows=tuple(axes[place : place + 1]),
                columns=tuple(axes[place - 1 : place]) if place else (),
                kernel=tuple(module.kernel_size),
            )

    def _of_type(self, prefix: str, kind: type[nn.Module]) -> list[str]:
        modules = self._twin.named_modules()
        return [name for name, one in modules if isinstance(one, kind) and name.startswith(prefix)]

    @torch.no_grad()
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of what each block, convolution and linear module puts out."""
        shapes: dict[str, tuple[int, ...]] = {}

        def note(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
            return lambda module, inputs, output: shapes.update({name: tuple(output.shape)})

        handles = [
            module.register_forward_hook(note(name))
            for name, module in self._twin.named_modules()
            if name in self._names or isinstance(module, nn.Conv2d | nn.Linear)
        ]
        self._twin(**self._inputs)
        for handle in handles:
            handle.remove()
        return shapes

    def _outer_flops(self, shapes: dict[str, tuple[int, ...]], matrices: Sequence[Matrix]) -> int:
        """Operations of an image in convolutions and linear modules outside the branches."""
        inner = {f"{name}.{matrix.path}" for name in self._names for matrix in matrices}
        return sum(
            2 * self._twin.get_parameter(f"{name}.weight").numel() * prod(shape[2:])
            for name, shape in shapes.items()
            if name not in inner and name not in self._names
        )
