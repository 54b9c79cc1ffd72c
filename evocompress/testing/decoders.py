"""Units and dimensions of Llama-like decoders made from numbers alone: no model, no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from evocompress.core.architecture import Architecture
from evocompress.core.types import Axis, Unit

ROWS: dict[str, tuple[Axis, ...]] = {
    "q_proj": ("query",),
    "k_proj": ("key",),
    "v_proj": ("value",),
    "gate_proj": ("channel",),
    "up_proj": ("channel",),
}
COLUMNS: dict[str, tuple[Axis, ...]] = {"o_proj": ("query",), "down_proj": ("channel",)}


@dataclass(frozen=True)
class Decoder:
    """The dimensions of a decoder with gated MLPs, two norms a block and a tied head.

    With `experts` each MLP is a mixture of that many experts. A token uses `active` of them, and
    passes a shared expert of `shared` channels besides.
    """

    layers: int = 4
    hidden: int = 16
    heads: int = 4
    kv_heads: int = 2
    ffn: int = 32
    vocabulary: int = 64
    context: int = 128
    window: int | None = None
    experts: int = 0
    active: int = 0
    shared: int = 0

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden // self.heads

    def units(self) -> list[Unit]:
        """All units, parents before their children."""
        return [unit for index in range(self.layers) for unit in self._block(index)]

    def architecture(self) -> Architecture:
        """What the cost model must know; every second block has the window, if there is one."""
        gate = self.hidden if self.shared else 0
        return Architecture(
            hidden=self.hidden,
            vocabulary=self.vocabulary,
            tied=True,
            outer_params=self.vocabulary * self.hidden + self.hidden,
            heads=(self.heads,) * self.layers,
            kv_heads=(self.kv_heads,) * self.layers,
            head_dim=self.head_dim,
            channels=(self.ffn,) * self.layers,
            windows=tuple(self.window if i % 2 else None for i in range(self.layers)),
            own_params=((self.hidden, self.hidden * (1 + self.experts) + gate),) * self.layers,
            dtype_bytes=2,
            context=self.context,
            experts=self.experts,
            active_experts=self.active,
            expert_params=(self.hidden, self.hidden),
            gate=gate,
        )

    def _block(self, index: int) -> list[Unit]:
        block = f"model.layers.{index}"
        units = [Unit(block, "block", None, index, "block")]
        for kind, module in (("attention", "self_attn"), ("mlp", "mlp")):
            sublayer = f"{block}.{kind}"
            attention = kind == "attention"
            active = 0 if attention else self.active
            units.append(
                Unit(
                    sublayer, "attention" if attention else "mlp", block, index, kind, active=active
                )
            )
            if attention or not self.experts:
                units.extend(self._below(sublayer, f"{block}.{module}", index, kind))
                continue
            units.extend(self._shared(sublayer, index) if self.shared else ())
            for number in range(self.experts):
                expert = f"{sublayer}.experts.{number}"
                units.append(Unit(expert, "expert", sublayer, index, f"mlp.experts.{number}"))
                units.extend(self._below(expert, expert, index, kind))
        return units

    def _shared(self, mlp: str, index: int) -> list[Unit]:
        """The matrices of the expert that every token passes."""
        path, size = "shared_expert", self.shared
        return [
            replace(
                unit,
                role=f"mlp.{path}.{unit.name.rpartition('.')[2]}",
                shape=(self.hidden, size) if unit.columns else (size, self.hidden),
                rows=() if unit.columns else ("shared",),
                columns=("shared",) if unit.columns else (),
            )
            for unit in self._below(mlp, f"{mlp}.{path}", index, "mlp")
        ]

    def _below(self, parent: str, module: str, index: int, kind: str) -> list[Unit]:
        """The matrices of a sub-layer or expert."""
        return [
            Unit(
                name=f"{module}.{role}",
                kind="matrix",
                parent=parent,
                block=index,
                role=f"{module.split('.', 3)[-1]}.{role}" if ".experts." in module else role,
                shape=shape,
                rows=ROWS.get(role, ()),
                columns=COLUMNS.get(role, ()),
            )
            for role, shape in self._matrices(kind).items()
        ]

    def _matrices(self, kind: str) -> dict[str, tuple[int, int]]:
        """{role: (out, in)} of one sub-layer."""
        narrow = self.kv_heads * self.head_dim
        if kind == "mlp":
            wide = (self.ffn, self.hidden)
            return {"gate_proj": wide, "up_proj": wide, "down_proj": (self.hidden, self.ffn)}
        square = (self.hidden, self.hidden)
        small = (narrow, self.hidden)
        return {"q_proj": square, "k_proj": small, "v_proj": small, "o_proj": square}


SMOLLM2_135M = Decoder(
    layers=30,
    hidden=576,
    heads=9,
    kv_heads=3,
    ffn=1536,
    vocabulary=49152,
    context=8192,
)

MIXTRAL = Decoder(
    layers=32,
    hidden=4096,
    heads=32,
    kv_heads=8,
    ffn=14336,
    vocabulary=32000,
    context=32768,
    experts=8,
    active=2,
)
