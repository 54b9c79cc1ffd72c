"""KL divergence between two models' distributions, in row chunks, and distance of embeddings.

The logits of a chunk of rows are made, used and forgotten, so that the full logits never exist;
their gradient has a closed form, so that autograd keeps nothing of the vocabulary's size either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evocompress.models.embedding_distance import distances

Head = Callable[[Tensor], Tensor]
"""Hidden states (R, H) to logits (R, V)."""

Comparison = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Of outputs (R, V) and what they should be: a sum over the rows, and its gradient by outputs."""

CHUNK_BYTES = 64 * 2**20
"""Of one model's float32 logits. Each chunk adds to the head's whole gradient: few are faster."""


LEAST = math.log(torch.finfo(torch.float32).tiny)
"""The least log-probability of a bucket that may have none."""


def rows_per_chunk(vocabulary: int) -> int:
    """How many rows of logits over a vocabulary of a size to hold at once."""
    return max(1, CHUNK_BYTES // (4 * vocabulary))


def of_logits(logits: Tensor, target_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over rows of KL(softmax(target_logits)‖softmax(logits)) and d(sum)/d(logits)."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    log_p = target_logits.to(wide).log_softmax(-1)
    log_q = logits.to(wide).log_softmax(-1)
    p = log_p.exp()
    value = log_p.sub_(log_q).mul_(p).sum()
    return value, log_q.exp_().sub_(p)


def of_buckets(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """As `of_logits`, of a target's likeliest tokens and one bucket for all the other ones.

    By the log-sum inequality the value is no larger than that of `of_logits`. `target` is what
    `pack` makes.
    """
    tokens, log_p, log_p_rest = unpack(target)
    return of_shares(logits, tokens, log_p, log_p_rest)


def of_shares(
    logits: Tensor, tokens: Tensor, log_p: Tensor, log_p_rest: Tensor
) -> tuple[Tensor, Tensor]:
    """KL and gradient for tokens (R, k), their log-probabilities (R, k) and the rest's (R,)."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    log_q = logits.to(wide).log_softmax(-1)
    own = log_q.gather(1, tokens)
    others = log_q.scatter(1, tokens, -torch.inf)
    rest = others.logsumexp(1, keepdim=True).clamp_min(LEAST)
    p, p_rest = log_p.exp(), log_p_rest.exp()[:, None]
    value = (p * (log_p - own)).sum() + (p_rest * (log_p_rest[:, None] - rest)).sum()
    gradient = others.sub_(rest).exp_().mul_(-p_rest).add_(log_q.exp_())
    return value, gradient.scatter_add_(1, tokens, -p.to(wide))


def pack(tokens: Tensor, log_p: Tensor, log_p_rest: Tensor) -> Tensor:
    """The buckets of rows as one tensor (R, 2k + 1): int32, and the bits of float32."""
    parts = (tokens.int(), log_p.float().view(torch.int32), log_p_rest[:, None].float())
    return torch.cat([parts[0], parts[1], parts[2].view(torch.int32)], 1)


def unpack(packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What was packed."""
    count = packed.shape[1] // 2
    values = packed[:, count:].view(torch.float32)
    return packed[:, :count].long(), values[:, :-1], values[:, -1]


def of_text(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over rows of the cross-entropy of tokens (R,), and its gradient by the logits."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    gradient = torch.zeros_like(logits, dtype=wide)
    return of_tokens(logits, tokens, gradient, 1.0), gradient


def of_tokens(logits: Tensor, tokens: Tensor, gradient: Tensor, weight: float) -> Tensor:
    """The summed cross-entropy of tokens (R,); adds `weight` times its gradient to a gradient."""
    log_q = logits.to(gradient.dtype).log_softmax(-1)
    own = log_q.gather(1, tokens[:, None])
    gradient.add_(log_q.exp_(), alpha=weight)
    gradient.scatter_add_(1, tokens[:, None], torch.full_like(own, -weight))
    return -own.sum()


@dataclass(frozen=True)
class DistillationLoss:
    """What hidden states (R, H) of a model lose against a target's (R, H'), summed over rows.

    Attributes:
        head: Makes the model's logits; its parameters get gradients, too.
        target_head: Makes the target's logits.
        rows: Of a chunk.
        compare: What is summed: KL(target‖model), over the full vocabulary, or another.
        compare_states: What a backward pass adds to it, of the hidden states themselves.
        next_token: What the cross-entropy of the text's own next tokens is multiplied by, which a
            backward pass adds to it.
    """

    head: Head
    target_head: Head
    rows: int
    compare: Comparison = of_logits
    compare_states: Comparison | None = None
    next_token: float = 0.0

    @torch.no_grad()
    def value(self, hidden: Tensor, target: Tensor) -> float:
        """The sum over the rows of hidden states (R, H) and the target's (R, H')."""
        sums = [
            self.compare(self.head(part), self.target_head(target_part))[0]
            for part, target_part in self._chunks(hidden, target)
        ]
        return float(torch.stack(sums).sum())

    def backward(
        self,
        hidden: Tensor,
        target: Tensor,
        scale: float,
        tokens: Tensor | None = None,
        others: Sequence[tuple[Tensor, Tensor]] = (),
    ) -> float:
        """The same sum; its gradient times `scale` is added to every parameter of the graph.

        Args:
            hidden: The model's hidden states (R, H).
            target: The target's (R, H').
            scale: Factor of the gradient.
            tokens: The next tokens (R,), where their cross-entropy counts.
            others: More tensors of the graph, with their gradients, for the same backward pass.
        """
        leaf = hidden.detach()
        sums, gradients = [], []
        for number, (part, target_part) in enumerate(self._chunks(leaf, target)):
            part.requires_grad_()
            logits = self.head(part)
            with torch.no_grad():
                value, gradient = self.compare(logits, self.target_head(target_part))
                if self.next_token and tokens is not None:
                    own = tokens[number * self.rows :][: len(part)]
                    value += self.next_token * of_tokens(logits, own, gradient, self.next_token)
            torch.autograd.backward(logits, gradient.mul_(scale).to(logits.dtype))
            assert part.grad is not None
            sums.append(value)
            gradients.append(part.grad)
        whole = torch.cat(gradients)
        if self.compare_states is not None:
            value, gradient = self.compare_states(leaf, target)
            sums.append(value)
            whole += gradient.mul_(scale)
        roots = [(hidden, whole)] if hidden.requires_grad else []
        if roots := [*roots, *others]:
            torch.autograd.backward([root for root, _ in roots], [given for _, given in roots])
        return float(torch.stack(sums).sum())

    def _chunks(self, hidden: Tensor, target: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        pair = (torch.split(each, self.rows) for each in (hidden, target))
        return zip(*pair, strict=True)


def of_embeddings(embeddings: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the `distances` of embeddings (B, H) to targets (B, H), and its gradient (B, H).

    All rows of a micro-batch must come at once, because their similarities count.
    """
    wide = torch.promote_types(embeddings.dtype, torch.float32)
    with torch.enable_grad():
        leaf = embeddings.detach().to(wide).requires_grad_()
        value = distances(leaf, target.to(wide)).sum()
        (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient


def of_scores(scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Half the sum of squared differences of scores (B, C) to targets (B, C), and its gradient."""
    wide = torch.promote_types(scores.dtype, torch.float32)
    difference = scores.to(wide) - target.to(wide)
    return difference.square().sum() / 2, difference


@torch.no_grad()
def of_states(states: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances of states (B, S, H) to targets (B, S, H), as shares of their squares.

    An embedding is one mean a sequence, from which there is little to learn; its terms are many.
    That a student learns the teacher's states is Patient Knowledge Distillation (1908.09355).

    Returns:
        The sum over sequences of the mean over tokens, and its gradient by `states`.
    """
    wide = torch.promote_types(states.dtype, torch.float32)
    difference, wanted = states.to(wide) - target.to(wide), target.to(wide)
    sizes = wanted.square().sum(-1, keepdim=True).clamp_min(torch.finfo(wide).tiny)
    weights = 1 / (sizes * states.shape[1])
    value = (difference.square() * weights).sum()
    return value, (2 * weights * difference).to(states.dtype)
