"""The sub-layers of a model, and what a level leaves of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evocompress.errors import ConfigError
from evocompress.types import Architecture, Axis, Level, Unit


@dataclass(frozen=True)
class Left:
    """What is left of a sub-layer.

    Attributes:
        kv_heads: Key-value heads; 0 for an MLP.
        group_heads: Query heads of each of them; 0 for an MLP.
        channels: FFN channels; 0 for an attention.
        weights: {matrix: its weights}.
        own: Parameters that are in no matrix: norms and biases.
    """

    kv_heads: int
    group_heads: int
    channels: int
    weights: Mapping[str, int]
    own: int

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
    """One sub-layer at its full width.

    Attributes:
        unit: The sub-layer.
        matrices: Its matrices.
        own: Its parameters that are in no matrix: norms and biases.
        kv_heads: Key-value heads; 0 for an MLP.
        group_heads: Query heads of each of them; 0 for an MLP.
        channels: FFN channels; 0 for an attention.
        head_dim: Width of a head.
        hidden: Width of the residual stream.
        window: Attention window in tokens; ``None`` for full attention.
        channel_params: Of `own` those that go with one channel.
    """

    unit: Unit
    matrices: tuple[Unit, ...]
    own: int
    kv_heads: int
    group_heads: int
    channels: int
    head_dim: int
    hidden: int
    window: int | None
    channel_params: int = 0

    def left(self, level: Level) -> Left:
        """What a level that does not drop the sub-layer leaves of it.

        The biases of a matrix go with its rows; a level with a bias adds one to the output.

        Raises:
            ConfigError: The level is wider than the model.
        """
        kv_heads = self._kept(level, level.kv_groups, self.kv_heads)
        group_heads = self._kept(level, level.group_heads, self.group_heads)
        channels = self._kept(level, level.channels, self.channels)
        query, group = kv_heads * group_heads * self.head_dim, kv_heads * self.head_dim
        lengths: dict[Axis, int] = {
            "query": query,
            "key": group,
            "value": group,
            "channel": channels,
            "inner": channels,
        }
        weights, cut = {}, self.channel_params * (self.channels - channels)
        for unit in self.matrices:
            assert unit.shape is not None
            rows = _along(unit.rows, lengths, unit.shape[0])
            columns = unit.patch * _along(unit.columns, lengths, unit.shape[1] // unit.patch)
            weights[unit.name] = rows * columns
            cut += (unit.shape[0] - rows) * unit.bias
        own = self.own - cut + self._outputs * level.bias
        return Left(kv_heads, group_heads, channels, weights, own)

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


def outline(units: Sequence[Unit], architecture: Architecture) -> tuple[Part, ...]:
    """The sub-layers among `units`, in model order."""
    return tuple(
        _part(unit, tuple(m for m in units if m.parent == unit.name), architecture)
        for unit in units
        if unit.kind in ("attention", "mlp")
    )


def _part(unit: Unit, matrices: tuple[Unit, ...], architecture: Architecture) -> Part:
    block, attention = unit.block, unit.kind == "attention"
    kv_heads = architecture.kv_heads[block]
    return Part(
        unit=unit,
        matrices=matrices,
        own=architecture.own_params[block][0 if attention else 1],
        kv_heads=kv_heads if attention else 0,
        group_heads=architecture.heads[block] // kv_heads if attention else 0,
        channels=0 if attention else architecture.channels[block],
        head_dim=architecture.head_dim,
        hidden=architecture.hidden,
        window=architecture.windows[block],
        channel_params=0 if attention else _channel_params(architecture, block),
    )


def _channel_params(architecture: Architecture, block: int) -> int:
    return architecture.channel_params[block] if architecture.channel_params else 0


def _along(axes: tuple[Axis, ...], lengths: Mapping[Axis, int], whole: int) -> int:
    """Rows (columns) of a matrix; all of them where they are the residual stream."""
    return sum(lengths[axis] for axis in axes) if axes else whole
