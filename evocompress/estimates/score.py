"""What small changes of the weights do to a model's next-token distributions: gradients of them.

To second order, the divergence that a weight change d causes at one position is
½·E_y⟨∇ log q(y), d⟩² with y drawn from the model itself: the Fisher information, which needs no
labels. Different positions' terms are uncorrelated, so the square of a whole sequence's
⟨Σ_t ∇ log q(y_t), d⟩ is an unbiased estimate of the sum over its positions, and one backward pass
serves any number of changes d at once (as in Optimal Brain Damage, LeCun et al. 1989, with the
Fisher of WoodFisher, Singh & Alistarh 2020, 2004.14340).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from evocompress.models import LoadedModel
from evocompress.proxies.head import chunk_rows
from evocompress.types import Candidate

Loss = Callable[[Tensor, slice], Tensor]
"""The gradient (R, V) by the logits of some rows (a slice of positions), given their softmax."""

Reader = Callable[[str, Tensor], None]
"""Told the name and the gradient of a parameter, which is freed afterwards."""


def sampled_score(ids: Tensor, candidate: Candidate, positions: int) -> Loss:
    """The gradient of the log-likelihood of tokens that the model itself draws.

    Args:
        ids: Tokens (1, S): with `candidate` the seed, so that the same question has one answer.
        candidate: What the model is.
        positions: Number of positions.
    """
    uniform = uniforms(ids, candidate, positions)

    def gradient(probabilities: Tensor, rows: slice) -> Tensor:
        sums = probabilities.double().cumsum(-1)
        drawn = torch.searchsorted(sums, uniform[rows].to(sums.device) * sums[:, -1:])
        # Only where the model gives no numbers: these come out as none, and are a failure.
        drawn.clamp_(max=sums.shape[-1] - 1)
        ones = torch.ones_like(drawn, dtype=probabilities.dtype)
        return (-probabilities).scatter_add_(-1, drawn, ones)

    return gradient


def uniforms(ids: Tensor, candidate: Candidate, positions: int) -> Tensor:
    """The random numbers (positions, 1) with which tokens are drawn, float64."""
    digest = hashlib.sha256(candidate.id.encode() + ids.cpu().numpy().tobytes()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.rand(positions, 1, generator=generator, dtype=torch.float64)


def divergence(loaded: LoadedModel, dense_hidden: Tensor) -> Loss:
    """The gradient of KL(dense || model).

    Args:
        loaded: The model; its head is used.
        dense_hidden: The dense model's final hidden states (positions, H).
    """

    def gradient(probabilities: Tensor, rows: slice) -> Tensor:
        logits = loaded.family.logits(loaded.model, dense_hidden[rows])
        return probabilities - logits.float().softmax(-1)

    return gradient


def read_gradients(
    loaded: LoadedModel, ids: Tensor, losses: Sequence[Loss], readers: Sequence[Reader]
) -> None:
    """One forward pass, and one backward pass for each loss, over one sequence.

    Only one parameter's gradient is in memory at a time.

    Args:
        loaded: The model as it stands.
        ids: Tokens (1, S); all positions but the last count.
        losses: What to differentiate, summed over the positions.
        readers: For each loss who is told the gradients of the parameters that require one.
    """
    with torch.enable_grad():
        hidden = loaded.family.hidden_states(loaded.model, ids)
    seeds = _hidden_gradients(loaded, hidden.detach(), losses)
    named = [(n, p) for n, p in loaded.model.named_parameters() if p.requires_grad]
    for index, (seed, reader) in enumerate(zip(seeds, readers, strict=True)):
        with _reading(named, reader):
            torch.autograd.backward(hidden, seed, retain_graph=index + 1 < len(seeds))


def _hidden_gradients(loaded: LoadedModel, hidden: Tensor, losses: Sequence[Loss]) -> list[Tensor]:
    """The gradient of each loss by the final hidden states (1, S, H), in row chunks."""
    seeds = [torch.zeros_like(hidden) for _ in losses]
    positions = hidden.shape[1] - 1
    step = chunk_rows(loaded.model)
    for begin in range(0, positions, step):
        rows = slice(begin, min(begin + step, positions))
        part = hidden[0, rows].clone().requires_grad_(True)
        with torch.enable_grad():
            logits = loaded.family.logits(loaded.model, part)
        probabilities = logits.detach().float().softmax(-1)
        for seed, loss in zip(seeds, losses, strict=True):
            outer = loss(probabilities, rows).to(logits.dtype)
            (seed[0, rows],) = torch.autograd.grad(logits, part, outer, retain_graph=True)
    return seeds


@contextmanager
def _reading(named: Sequence[tuple[str, nn.Parameter]], reader: Reader) -> Iterator[None]:
    """Hands every gradient over as soon as it is there, and frees it."""

    def hook(name: str) -> Callable[[Tensor], None]:
        def take(parameter: Tensor) -> None:
            assert parameter.grad is not None
            reader(name, parameter.grad)
            parameter.grad = None

        return take

    handles: list[RemovableHandle] = [
        parameter.register_post_accumulate_grad_hook(hook(name))  # type: ignore[no-untyped-call]
        for name, parameter in named
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def differentiable(parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Lets gradients flow to parameters for a while."""
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in parameters.values():
            parameter.requires_grad_(False)
            parameter.grad = None
