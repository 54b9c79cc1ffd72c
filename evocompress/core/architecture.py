"""What the costs of a model follow from."""

from __future__ import annotations

from dataclasses import dataclass

from evocompress.core.beside import Beside


@dataclass(frozen=True)
class Architecture:
    """What the cost model must know of a model, read from its config; no tensors.

    Attributes:
        hidden: Width of the residual stream.
        vocabulary: Rows of the output head, which every position has; 0 without one.
        tied: Whether the head shares the input embedding's weights.
        outer_params: Parameters outside the blocks (embeddings, final norm, untied head).
        heads, kv_heads, head_dim, channels: Attention shape and FFN width of each block.
        windows: Attention window of each block in tokens, itself among them, on each side that a
            token sees; ``None`` for full attention.
        own_params: For each block, parameters of (attention, mlp) sub-layers that are in no
            matrix unit: norms and biases.
        dtype_bytes: Bytes of one stored weight.
        context: Longest sequence the model takes, in tokens.
        causal: Whether it tells the next token, for which a cache keeps keys and values.
        one_way: Whether a token sees only those before it.
        outer_flops: Operations of a sequence outside the blocks that do not grow with its length.
        token_flops: Operations of a token outside the sub-layers, but for the head's.
        uncounted: Module path of something that computes more than is counted; empty if nothing.
        tokens: Of every sequence, where they all have as many: an image's.
        experts: Of each block's MLP, where it is a mixture of experts, and where blocks differ the
            mean; `channels` is then the width of one. 0 otherwise.
        active_experts: How many of them each token uses.
        expert_params: Parameters of the router that go with an expert, and those of them that each
            token is multiplied with.
        gate: Weights of each block's MLP that are in no matrix unit and that each token is
            multiplied with: what weighs an expert that every token passes, and a router that keeps
            all rows.
        channel_params: For each block the parameters of its MLP that go with one channel and are
            in no matrix: of norms between its matrices. Empty where there are none.
        head_params: For each block the parameters of its attention that go with one query head,
            and with one key-value head, and are in no matrix: sinks. Empty where there are none.
        head_dims: For each block the width of a head. Empty where all are `head_dim`.
        head_widths: For each block the values of a key and a value of a head together. Empty where
            that is twice `head_dim`.
        latents: For each block how many values are cached of a token in place of its keys and
            values, which are made of them anew; 0 where those are cached. Empty where all are.
        repeated: Keys and values are cached for each query head, as some Falcons do.
        state: Most values of a sequence's state between two blocks, if not `hidden` a token.
        beside: For each block what its attention takes beside its matrices and its heads. Empty
            where no block has anything like that.
        handed: Values of a token that blocks hand on beside the hidden state: keys and values that
            later ones read.
        calls: How often a forward pass runs each block. Empty where that is once.
        shared: Weights of all matrices that several blocks share.

    Examples:
        >>> from evocompress.testing.tiny import tiny_loaded
        >>> loaded = tiny_loaded("llama")
        >>> loaded.family.architecture(loaded.model).hidden
        64
    """

    hidden: int
    vocabulary: int
    tied: bool
    outer_params: int
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    head_dim: int
    channels: tuple[int, ...]
    windows: tuple[int | None, ...]
    own_params: tuple[tuple[int, int], ...]
    dtype_bytes: int
    context: int
    causal: bool = True
    one_way: bool = True
    outer_flops: int = 0
    token_flops: int = 0
    uncounted: str = ""
    tokens: int | None = None
    experts: int = 0
    active_experts: int = 0
    expert_params: tuple[int, int] = (0, 0)
    gate: int = 0
    channel_params: tuple[int, ...] = ()
    head_params: tuple[tuple[int, int], ...] = ()
    head_dims: tuple[int, ...] = ()
    head_widths: tuple[int, ...] = ()
    latents: tuple[int, ...] = ()
    repeated: bool = False
    state: int | None = None
    beside: tuple[Beside | None, ...] = ()
    handed: int = 0
    calls: tuple[int, ...] = ()
    shared: int = 0

    @property
    def runs(self) -> tuple[int, ...]:
        """How often a forward pass runs each block."""
        return self.calls or (1,) * len(self.heads)

    def state_values(self, tokens: int) -> int:
        """Values of the state between two blocks of a sequence with these tokens."""
        return self.state or tokens * (self.hidden + self.handed)

    @property
    def routed_share(self) -> float:
        """Share of the tokens that an expert sees, were all seen as often."""
        return self.active_experts / (self.experts or 1)
