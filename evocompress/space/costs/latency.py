"""Measured latency as a cost: seconds of sub-layers by width, and the file they are kept in.

A lookup table of parts whose sum is the whole (once-for-all, Cai et al., arXiv 1908.09791; by
heads and channels of a decoder in ZipLM, Kurtic et al., arXiv 2302.04089). How it is measured:
`evocompress.evaluation.profile`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from evocompress.core.arrays import Floats
from evocompress.core.errors import ConfigError
from evocompress.core.files import first_problem

Heads = tuple[int, int]
"""Width of an attention: (key-value heads, query heads in each of their groups)."""


@dataclass(frozen=True)
class Phase:
    """Seconds of one forward pass, part by part; a part that is left out costs nothing.

    The seconds of the parts are those of one layer with its norms, averaged over the layers,
    already corrected by `scale` and `offset`. Wider parts never cost less.

    Attributes:
        batch: Sequences.
        tokens: Tokens of a sequence: of the prompt in a prefill, in the cache in a decoding step.
        dense: Seconds of the whole unchanged model, as measured.
        base: Seconds of what no candidate can save: embedding, last norm, head.
        attention: Seconds by (key-value heads, query heads in each group), on a full grid.
        mlp: Seconds by FFN channels.
        scale: Factor that whole random candidates gave to the sum of the parts.
        offset: Seconds that they added to it.
        spread: Slowest minus fastest turn of a measurement, as a fraction of the dense model's
            time; the median over measurements.
        errors: Predicted minus measured seconds of each of these candidates, as a fraction of
            the measured ones.
        graph: Whether a CUDA graph was replayed, instead of launching each operation.
    """

    batch: int
    tokens: int
    dense: float
    base: float
    attention: Mapping[Heads, float]
    mlp: Mapping[int, float]
    scale: float = 1.0
    offset: float = 0.0
    spread: float = 0.0
    errors: tuple[float, ...] = ()
    graph: bool = False

    def attention_seconds(self, kv_groups: int, group_heads: int) -> float:
        """Seconds of an attention with these heads; bilinear between measured widths."""
        heads = np.array([np.interp(group_heads, self._heads, row) for row in self._attention])
        return float(np.interp(kv_groups, self._groups, heads))

    def mlp_seconds(self, channels: int) -> float:
        """Seconds of an MLP with these channels; linear between measured widths."""
        widths = sorted(self.mlp)
        return float(np.interp(channels, widths, [self.mlp[width] for width in widths]))

    def seconds(self, attention: Iterable[Heads], mlp: Iterable[int]) -> float:
        """Seconds of a model whose kept attentions and MLPs have these widths."""
        heads = sum(self.attention_seconds(*width) for width in attention)
        return self.base + heads + sum(self.mlp_seconds(width) for width in mlp)

    @property
    def full(self) -> tuple[Heads, int]:
        """The widths of the unchanged model's attention and MLP."""
        return max(self.attention), max(self.mlp)

    @cached_property
    def _groups(self) -> list[int]:
        return sorted({groups for groups, _ in self.attention})

    @cached_property
    def _heads(self) -> list[int]:
        return sorted({heads for _, heads in self.attention})

    @cached_property
    def _attention(self) -> Floats:
        """Seconds on the grid: (groups, heads)."""
        rows = [[self.attention[g, q] for q in self._heads] for g in self._groups]
        return np.array(rows, dtype=np.float64)

    def to_json(self) -> dict[str, Any]:
        """Plain data; see `_PhaseContent`."""
        data = {field.name: getattr(self, field.name) for field in fields(self)}
        return data | {
            "attention": [[*width, seconds] for width, seconds in sorted(self.attention.items())],
            "mlp": [[width, seconds] for width, seconds in sorted(self.mlp.items())],
            "errors": list(self.errors),
        }


@dataclass(frozen=True)
class Conditions:
    """The facts that a latency depends on beside widths; tables that differ in one do not compare.

    Attributes:
        device: In words, e.g. ``cuda: NVIDIA H200`` or ``cpu: AMD EPYC``.
        dtype: Of the weights, e.g. ``bfloat16``.
        threads: CPU threads of torch; 0 on another device, where they do not count.
        kernel: The attention implementation, e.g. ``sdpa``.
        torch: Version of torch, whose kernels were timed.
        model: Fingerprint of the dense model.
        prefill: (batch, tokens) of the prefill.
        decode: (batch, context tokens) of the decoding step.
        method: Version of the way of measuring; 0 where a table does not tell.
    """

    device: str
    dtype: str
    threads: int
    kernel: str
    torch: str
    model: str
    prefill: tuple[int, int]
    decode: tuple[int, int]
    method: int = 0


@dataclass(frozen=True)
class LatencyTable:
    """The latency of every candidate of one model under some circumstances.

    Attributes:
        made: The circumstances under which it was measured.
        prefill: Of one prefill: the cost ``latency``.
        decode: Of one decoding step with a full cache: the cost ``decode_latency``; ``None`` for
            a model that has no cache.

    Examples:
        >>> from evocompress.pipeline.unmeasured_latency import UNMEASURED
        >>> UNMEASURED.made.device
        'none'
    """

    made: Conditions
    prefill: Phase
    decode: Phase | None

    def to_json(self) -> dict[str, Any]:
        """Plain data; see `from_json`."""
        decode = self.decode.to_json() if self.decode else None
        phases = {"prefill": self.prefill.to_json(), "decode": decode}
        return {"made": asdict(self.made), "phases": phases}

    @classmethod
    def from_json(cls, data: Any, where: str) -> LatencyTable:
        """The inverse of `to_json`; `where` names the file in errors.

        Raises:
            ConfigError: The data are not a latency table.
        """
        try:
            content = _Content.model_validate(data)
        except ValidationError as error:
            raise ConfigError(
                f"{where} is no latency table of this version ({first_problem(error)}): name "
                "another latency.table, or measure over it with 'evocompress profile --anew'"
            ) from error
        prefill, decode = content.phases.prefill, content.phases.decode
        return cls(content.made, prefill.phase(), decode.phase() if decode else None)


class _Shape(BaseModel):
    """Base of the parts of a table as JSON."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]


class _PhaseContent(_Shape):
    """A `Phase` as JSON, whose attentions are on a full grid."""

    batch: Annotated[int, Field(ge=1)]
    tokens: Annotated[int, Field(ge=1)]
    dense: Seconds
    base: float
    attention: Annotated[list[tuple[Count, Count, float]], Field(min_length=1)]
    mlp: Annotated[list[tuple[Count, float]], Field(min_length=1)]
    scale: float = 1.0
    offset: float = 0.0
    spread: float = 0.0
    errors: tuple[float, ...] = ()
    graph: bool = False

    @field_validator("attention")
    @classmethod
    def _full(cls, found: list[tuple[int, int, float]]) -> list[tuple[int, int, float]]:
        groups, heads = ({entry[axis] for entry in found} for axis in (0, 1))
        if len({entry[:2] for entry in found}) != len(groups) * len(heads):
            raise ValueError("widths are missing")
        return found

    def phase(self) -> Phase:
        """The phase."""
        parts = {
            "attention": {(groups, heads): seconds for groups, heads, seconds in self.attention},
            "mlp": dict(self.mlp),
        }
        rest = {name: getattr(self, name) for name in type(self).model_fields}
        return Phase(**rest | parts)


class _Phases(_Shape):
    """The phases of a table; an encoder has no decoding."""

    prefill: _PhaseContent
    decode: _PhaseContent | None


class _Content(_Shape):
    """A `LatencyTable` as JSON."""

    made: Conditions
    phases: _Phases
