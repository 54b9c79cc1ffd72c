"""The sub-layers of a model and the experts in them, and what a level leaves of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from evocompress.core.architecture import Architecture
from evocompress.core.beside import Beside
from evocompress.core.canonical import COSTED
from evocompress.core.errors import ConfigError
from evocompress.core.types import DENSE, Level, Unit
from evocompress.core.units import UnitTree
from evocompress.core.widths import Widths

NOTHING = Beside()


@dataclass(frozen=True)
class Left:
    """The sizes of a sub-layer at a level.

    Attributes:
        kv_heads: Key-value heads; 0 for an MLP.
        group_heads: Query heads of each of them; 0 for an MLP.
        channels: FFN channels; 0 for an attention.
        weights: {matrix: its weights}.
        own: Parameters that are in no matrix: norms and biases; of an expert also those of
            the router that go with it.
        used: Weights of matrices that each token meets. Those of experts count in the MLP that
            they are in, and there for as many experts as a token uses.

    Examples:
        >>> Left(kv_heads=2, group_heads=2, channels=0, weights={"q": 8}, own=4, used=8).heads
        4
    """

    kv_heads: int
    group_heads: int
    channels: int
    weights: Mapping[str, int]
    own: int
    used: int

    @property
    def heads(self) -> int:
        """Query heads; 0 for an MLP."""
        return self.kv_heads * self.group_heads

    @property
    def weight(self) -> int:
        """Weights of all matrices."""
        return sum(self.weights.values())


@dataclass(frozen=True)
class Part:
    """One sub-layer, or one expert, at its full width.

    Attributes:
        unit: The sub-layer, or expert.
        matrices: Its matrices.
        own: Its parameters that are in no matrix: norms and biases.
        kv_heads: Key-value heads; 0 for an MLP.
        group_heads: Query heads of each of them; 0 for an MLP.
        channels: FFN channels; 0 for an attention.
        head_width: Values of a key and a value of a head together.
        latent: Values that are cached of a token in place of keys and values; 0 where those are.
        repeated: Keys and values are cached for each query head.
        hidden: Width of the residual stream.
        window: Attention window in tokens; ``None`` for full attention.
        routed: The matrices of the experts that a token uses, of an MLP that is a mixture.
        channel_params: Of `own` those that go with one channel.
        head_params: Of `own` those that go with one query head, and with one key-value head.
        gate: Of `own` those that each token is multiplied with: what weighs a shared expert, and
            a router or the row of it that goes with an expert.
        beside: What it takes beside its matrices, but for what heads take.
        runs: How often a forward pass runs it.
        users: The attentions of the blocks that run its shared matrices.
        cache: The unit of what it caches, if that can be rounded.

    Examples:
        >>> from evocompress.testing.examples import space
        >>> part = space().cost_model.parts[1]
        >>> part.unit.kind, part.left(Level(channels=8)).channels
        ('mlp', 8)
    """

    unit: Unit
    matrices: tuple[Unit, ...]
    own: int
    kv_heads: int
    group_heads: int
    channels: int
    head_width: int
    hidden: int
    window: int | None
    routed: tuple[Unit, ...] = ()
    latent: int = 0
    repeated: bool = False
    channel_params: int = 0
    head_params: tuple[int, int] = (0, 0)
    gate: int = 0
    beside: Beside = NOTHING
    runs: int = 1
    users: tuple[str, ...] = ()
    cache: str = ""

    def alone_and_shared(self) -> tuple[Part, Part]:
        """It without what later blocks share, and that."""
        own = tuple(matrix for matrix in self.matrices if not matrix.shares)
        shared = tuple(matrix for matrix in self.matrices if matrix.shares)
        return (
            replace(self, matrices=own, kv_heads=0, group_heads=0, users=()),
            replace(self, matrices=shared, own=0, beside=NOTHING, users=()),
        )

    def left(self, level: Level) -> Left:
        """The sizes that a level which does not drop the sub-layer leaves.

        The biases of a matrix go with its rows; a level with a bias adds one to the output.

        Raises:
            ConfigError: The level is wider than the model.
        """
        kv_heads = self._kept(level, level.kv_groups, self.kv_heads)
        group_heads = self._kept(level, level.group_heads, self.group_heads)
        channels = self._kept(level, level.channels, self.channels)
        widths = self._widths(kv_heads, group_heads, channels)
        dense = self._widths(self.kv_heads, self.group_heads, self.channels)
        weights, cut = {}, self.channel_params * (self.channels - channels)
        of_query, of_key = self.head_params
        cut += of_query * (dense.heads - widths.heads) + of_key * (self.kv_heads - kv_heads)
        for unit in self.matrices:
            rows, columns = widths.shape(unit, dense)
            weights[unit.name] = rows * columns
            cut += (unit.shape[0] - rows) * unit.bias if unit.shape else 0
        own = self.own - cut + self._outputs * level.bias
        met = (*self.routed, *(() if self.unit.kind == "expert" else self.matrices))
        used = sum(prod(widths.shape(unit, dense)) for unit in met)
        return Left(kv_heads, group_heads, channels, weights, own, used)

    def shape(self, matrix: Unit, level: Level) -> tuple[int, int]:
        """The shape (out, in) of one of its matrices at a level that does not drop it."""
        left = self.left(level)
        dense = self._widths(self.kv_heads, self.group_heads, self.channels)
        return self._widths(left.kv_heads, left.group_heads, left.channels).shape(matrix, dense)

    def _widths(self, kv_heads: int, group_heads: int, channels: int) -> Widths:
        return Widths(kv_heads * group_heads, kv_heads, self.head_width // 2, channels)

    @property
    def _outputs(self) -> int:
        """Outputs of the sub-layer: the width of the residual stream there."""
        shapes = [unit.shape for unit in self.matrices if not unit.rows and unit.shape]
        return shapes[-1][0] if shapes else self.hidden

    def _kept(self, level: Level, count: int | None, whole: int) -> int:
        """How many heads or channels stay."""
        if count is None:
            return whole
        if not 0 < count <= whole:
            raise ConfigError(
                f"unit '{self.unit.name}' has no level '{level.key}': in this model it has "
                + (
                    f"{self.channels} channels"
                    if self.channels
                    else f"{self.kv_heads} key-value heads with {self.group_heads} query heads each"
                )
            )
        return count


def cost_parts(units: Sequence[Unit], architecture: Architecture) -> tuple[Part, ...]:
    """The sub-layers and experts among `units`, in model order."""
    tree = UnitTree(units)
    return tuple(_part(unit, tree, architecture) for unit in tree if unit.kind in COSTED)


def level_of(part: Part, levels: Mapping[str, Level]) -> Level:
    """The level of a part by a candidate's levels of units: an expert has its MLP's width."""
    own = levels.get(part.unit.name, DENSE)
    if own.drop or part.unit.kind != "expert":
        return own
    return levels.get(part.unit.owner, DENSE)


def _own_of_expert(expert: Unit, tree: UnitTree, architecture: Architecture) -> int:
    """Biases of an expert, and the parameters of the router that go with it."""
    biased = (m.shape for m in tree.children[expert.name] if m.bias)
    return architecture.expert_params[0] + sum(shape[0] for shape in biased if shape)


def _part(unit: Unit, tree: UnitTree, architecture: Architecture) -> Part:
    block, attention = unit.block, unit.kind == "attention"
    kv_heads = architecture.kv_heads[block]
    experts = tree.experts.get(unit.name, ())
    by_channel = architecture.channel_params
    by_head = architecture.head_params
    matrices = tuple(matrix for matrix in tree.children[unit.name] if matrix.kind == "matrix")
    shared = any(matrix.shares for matrix in matrices)
    users = (
        tuple(u.name for u in tree if u.kind == "attention" and u.shares == unit.parent)
        if shared
        else ()
    )
    doubled = (2 * architecture.head_dim,) * len(architecture.heads)
    if unit.kind == "expert":
        own = _own_of_expert(unit, tree, architecture)
    else:
        own = architecture.own_params[block][0 if attention else 1] - sum(
            _own_of_expert(expert, tree, architecture) for expert in experts
        )
    return Part(
        unit=unit,
        matrices=matrices,
        own=own,
        kv_heads=kv_heads if attention else 0,
        group_heads=architecture.heads[block] // kv_heads if attention and kv_heads else 0,
        channels=0 if attention else architecture.channels[block],
        head_width=(architecture.head_widths or doubled)[block],
        latent=architecture.latents[block] if attention and architecture.latents else 0,
        repeated=architecture.repeated,
        hidden=architecture.hidden,
        window=architecture.windows[block],
        routed=tuple(m for expert in experts[: unit.active] for m in tree.children[expert.name]),
        channel_params=0 if attention or not by_channel else by_channel[block],
        head_params=architecture.head_params[block] if attention and by_head else (0, 0),
        gate=architecture.expert_params[1]
        if unit.kind == "expert"
        else architecture.gate * bool(experts),
        beside=(architecture.beside[block] if attention and architecture.beside else None)
        or NOTHING,
        runs=architecture.runs[block],
        users=users,
        cache=next((own.name for own in tree.children[unit.name] if own.kind == "cache"), ""),
    )
