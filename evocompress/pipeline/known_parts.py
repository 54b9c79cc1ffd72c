"""What needs more of a model than its matrices, where nothing else of it is known."""

from __future__ import annotations

from evocompress.core.config import SpaceConfig
from evocompress.core.errors import ConfigError, ModelError
from evocompress.models.families import Family
from evocompress.models.families.caches import check_key_value_caches
from evocompress.models.loading import LoadedModel
from evocompress.space.costs import CACHED, OPERATIONS, TIMED

GOES = "only space.bits and space.sparsity go, with budgets of bytes, bits and weights"


def check_known_parts(loaded: LoadedModel, space: SpaceConfig) -> None:
    """Refuse a space that cuts, or rounds, what is not known.

    Raises:
        ModelError: It would narrow or drop something, or round caches that are no keys and values.
        ConfigError: It has types of an embedding, or a cost that is not known.
    """
    family = loaded.family
    if space.cache is not None:
        check_key_value_caches(family, loaded.model)
    if not family.alone:
        return
    cut = next((name for name in ("width", "drop") if getattr(space, name) is not None), None)
    if cut is not None:
        raise ModelError(f"space.{cut}: {family.alone}; {GOES}")
    if space.bits is not None and (other := {*space.bits.scope} - {"matrices"}):
        raise ConfigError(
            f"space.bits.scope: {min(other)} of this {family.model_type} model cannot have types: "
            "what is between it and the blocks is not known; give matrices alone"
        )
    if space.memory is not None:
        raise ConfigError(
            f"space.memory: the caches of this {family.model_type} model are not known, as its "
            "blocks are not: leave it out, and bound weight_bytes"
        )
    for name in space.budget:
        if name in (*OPERATIONS, *CACHED, *TIMED):
            raise ConfigError(
                f"space.budget.{name}: it is counted by blocks, and those of this "
                f"{family.model_type} model are not known; {GOES}"
            )


def check_healed(family: Family) -> None:
    """Refuse to heal a model whose blocks are not known.

    Raises:
        ModelError: It is one.
    """
    if family.alone:
        raise ModelError(f"heal: {family.alone}; such models are not healed")
