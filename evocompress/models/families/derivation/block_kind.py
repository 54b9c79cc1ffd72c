"""A kind of block as it was derived: its sub-layers, and what can be done to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from evocompress.core.beside import Beside
from evocompress.core.widths import Widths, per_item
from evocompress.models.families.branches import Matrix, SubLayer, SubLayerName
from evocompress.models.families.coupling import Follower
from evocompress.models.families.derivation.proof import WidthSettings
from evocompress.models.families.derivation.residual_branch import ResidualBranch
from evocompress.models.families.mixture import Mixture
from evocompress.models.families.shapes import matrix_shape


@dataclass(frozen=True)
class DerivedPart:
    """A sub-layer as it was derived.

    Attributes:
        branch: Its modules.
        matrices: Its linear ones.
        settings: What they are told when the width changes; ``None`` where it cannot.
        reason: Why it cannot; empty where it can.
        mixture: The experts in it, where it is a mixture.
        followers: What has values for each head beside the matrices.
        narrowed: The modules that become narrower, where those are not all of the branch.
        within: It lies in the block's attention, with which it is removed.
    """

    branch: ResidualBranch
    matrices: tuple[Matrix, ...]
    settings: WidthSettings | None = None
    reason: str = ""
    mixture: Mixture | None = None
    followers: tuple[Follower, ...] = ()
    narrowed: ResidualBranch | None = None
    within: bool = False

    @property
    def whole(self) -> DerivedPart:
        """The same where it computes with no heads that the config counts: none of its rows is one.

        Its heads cannot be cut.
        """
        matrices = tuple(replace(matrix, rows=(), columns=()) for matrix in self.matrices)
        own = "its operations beside its matrices are not those of the heads in the config"
        reason = self.reason or f"heads cannot be cut: {own}"
        return replace(self, matrices=matrices, settings=None, reason=reason)

    @property
    def sublayer(self) -> SubLayer:
        """The same in the words of families."""
        others = (path for o in self.branch.beside for path in (*o.core, *o.after))
        return SubLayer(
            matrices=self.matrices,
            identity_modules=(*self.branch.identities, *others),
            zero_module=self.branch.zero,
            norm_after=self.branch.norm_after or self.branch.norm_within,
            followers=self.followers,
            narrowable=self.settings is not None,
        )


@dataclass(frozen=True)
class CountedHeads:
    """Heads of an attention whose operations are all counted.

    Attributes:
        width: Values of a key and a value of a head together, in a tiny model.
        query_rows: What the rows of the matrix with the queries are: 1 for queries alone, 2 where
            a gate, as wide as a value, is beside them. 0 where only the config tells how wide
            heads are.
        latent: Path of the matrix whose outputs are cached in place of keys and values; empty where
            those are.
        repeated: Keys and values are cached for each query head.
        further: The attention takes more than its heads do, whatever their number is, as an
            indexer does that chooses tokens.
    """

    width: int
    query_rows: int = 0
    latent: str = ""
    repeated: bool = False
    further: bool = False


@dataclass(frozen=True)
class Kind:
    """What blocks that are built alike have.

    Attributes:
        parts: Their sub-layers in order.
        shared: What stays where they are removed: norms that both read, other modules, and
            parameters of the block itself.
        classes: {module path: class} of what has parameters.
        heads: Those of their attention; ``None`` where it computes with others than the config
            says, or something else.
        attends: Whether its keys and values are cached.
        remainder: Why such a block is not the identity without its sub-layers; empty where it is.
        beside: What their attention takes beside its matrices and its heads.
        uncounted: Why that is not known.
        stores: Under which keys it hands on its keys and values to later blocks that read them.
        reads: The keys whose keys and values it reads.
        tied: Names of the parameters that other blocks have as well, such as those of an attention
            that runs in several blocks. They count once, as if they were outside, and stay as long
            as any of these blocks is left.
        kv_times: How many times as many key-value heads they have as the config says.
        common: Of these parameters what are matrices, as sub-layers of the first of the blocks.
        commons: Path of the module with all of them.
        mlp_state: Path of the module of their MLP that keeps a state in the layer's cache; empty
            where none does. A layer without attention has no cache.
    """

    parts: Mapping[SubLayerName, DerivedPart]
    shared: tuple[str, ...]
    classes: Mapping[str, str]
    heads: CountedHeads | None
    attends: bool
    remainder: str = ""
    beside: Beside | None = None
    uncounted: str = ""
    stores: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()
    kv_times: int = 1
    common: Mapping[SubLayerName, DerivedPart] = field(default_factory=dict)
    commons: str = ""
    mlp_state: str = ""

    @property
    def by_heads(self) -> bool:
        """Whether their attention takes nothing beside its matrices and its heads."""
        return self.heads is not None and not self.heads.further

    @property
    def limits(self) -> list[str]:
        """What cannot be done to such a block, and why."""
        found = [part.reason for part in self.parts.values() if part.reason]
        if self.remainder:
            why = f"without its sub-layers one is not the identity ({self.remainder})"
            found.append(f"blocks cannot be dropped: {why}")
        if self.mlp_state:
            found.append(
                "an attention cannot be dropped alone: a layer without one has no cache, and "
                f"{self.mlp_state} keeps a state there"
            )
        return found


def first_parts(kinds: Sequence[Kind]) -> dict[SubLayerName, DerivedPart]:
    """Of each sub-layer the first that can be narrowed; the first, where none can."""
    found: dict[SubLayerName, DerivedPart] = {}
    for kind in kinds:
        for name, part in kind.parts.items():
            if name not in found or (part.settings and not found[name].settings):
                found[name] = part
    return found


def kv_times(block: nn.Module, heads: int, kv_heads: int) -> int:
    """How many times as many key-value heads a block has as its config says.

    Layers of one type may have more than others (MiMo V2). The kernels of transformers read how
    many queries share one.
    """
    every = (getattr(module, "num_key_value_groups", None) for module in block.modules())
    found = {groups for groups in every if isinstance(groups, int) and groups}
    times, rest = divmod(heads, kv_heads * next(iter(found))) if len(found) == 1 else (1, 0)
    return times if times and not rest else 1


def rows_of_query(block: nn.Module, matrices: Sequence[Matrix], widths: Widths) -> int:
    """How many rows the matrix with the queries of an attention has for each head."""
    own = next(m for m in matrices if {"query", "grouped"} & {*m.rows})
    return per_item(own.rows, widths.lengths, matrix_shape(block, own)[0])


def module_classes(block: nn.Module) -> dict[str, str]:
    """{module path: class} of a block; what has no parameters need not be alike."""
    return {
        path: type(module).__name__
        for path, module in block.named_modules()
        if path and "experts" not in path.split(".") and any(True for _ in module.parameters())
    }
