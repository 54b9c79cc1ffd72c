"""What tiny models are called with and answer, and sub-layers that are removed by brute force."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from evocompress.models.dummy_inputs import image_shape
from evocompress.models.families import Family, SubLayerName

LINEAR = (nn.Linear, Conv1D, nn.Conv2d)


def random_ids(batch: int = 2, length: int = 24) -> Tensor:
    """Token ids (batch, length), longer than the windows of the tiny models."""
    return torch.randint(0, 244, (batch, length), generator=torch.Generator().manual_seed(1))


def random_batch(family: Family, model: PreTrainedModel, batch: int = 2) -> Tensor:
    """What a tiny model is called with: token ids (batch, 24), or images (batch, 1, 8, 8)."""
    if family.task.reads_text:
        return random_ids(batch)
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch, *image_shape(model), generator=generator)


def answer(family: Family, model: PreTrainedModel, batch: Tensor) -> Tensor:
    """What a user sees of a model's own forward pass: logits, or embeddings of unit length."""
    output = family.task.run(model, batch)
    if "logits" in output:
        logits: Tensor = output.logits
        return logits
    pooled = family.task.pooled(output)
    return pooled / pooled.square().sum(-1, keepdim=True).sqrt()


def output_pattern(family: Family, sublayer: SubLayerName) -> str:
    """Of the modules whose outputs a sub-layer adds to the residual stream."""
    last = [m.pattern for m in family.matrices if m.sublayer == sublayer and not m.rows]
    return "|".join(last)


def silence(family: Family, block: nn.Module, sublayer: SubLayerName) -> None:
    """Remove a sub-layer by brute force: zero weights and bias in its last matrix, or norm.

    Of a mixture in the last one of every expert, a shared one among them. What the modules around
    that matrix hold themselves, as a bias, is zero as well. A norm of the sum with the residual
    stream is taken out with it.
    """
    branch = family.attention if sublayer == "attention" else family.mlp
    last = re.compile(re.escape(branch.gate) or output_pattern(family, sublayer))
    for path, module in block.named_modules():
        if last.fullmatch(path):
            around = (block.get_submodule(outer) for outer in _outer(path))
            beside = (one for outer in around for one in outer.parameters(recurse=False))
            for parameter in (*module.parameters(), *beside):
                parameter.zero_()
    if branch.norm_after:
        block.set_submodule(branch.norm_after, nn.Identity())


def _outer(path: str) -> Iterator[str]:
    """The modules that a module of a block is within."""
    names = path.split(".")
    yield from (".".join(names[:depth]) for depth in range(1, len(names)))


def linear_modules(family: Family, block: nn.Module) -> dict[str, nn.Module]:
    """The linear modules of a block by path, but what stays, weighs a shared expert, or routes."""
    mixture = family.mixture
    routers = [f"{mixture.shared_gate}.weight"] if mixture else []
    routers += mixture.entries if mixture else []
    staying = tuple(f"{path}." for path in family.shared)
    routers += {*family.tied} - {f"{matrix.path}.weight" for matrix in family.matrices}
    return {
        path: module
        for path, module in block.named_modules()
        if isinstance(module, LINEAR)
        and f"{path}.weight" not in routers
        and not f"{path}.".startswith(staying)
    }


def replace_modules(block: nn.Module, modules: dict[str, nn.Module]) -> None:
    """Put modules at their paths in a block."""
    for path, module in modules.items():
        block.set_submodule(path, module)


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    """Both tensors are the same to the last bit."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def tied_outside(family: Family, block: nn.Module) -> int:
    """Parameters of a block that others have as well, and that are no units of this one."""
    own = {f"{matrix.path}.weight" for matrix in family.matrices}
    return sum(p.numel() for n, p in block.named_parameters() if n in family.tied and n not in own)
