"""How a block differs from that of its class, as `modeling_derived` takes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from evocompress.models.families.base import Family
from evocompress.models.families.branches import Attributes, SubLayerName
from evocompress.models.families.derivation.residual_branch import Zero
from evocompress.models.families.stand_ins import ZeroAttention

Edits = dict[str, Any]
"""What `evocompress.models.modeling.modeling_derived.edited` takes."""


def removal(family: Family, block: nn.Module, gone: Iterable[SubLayerName]) -> Edits:
    """What stands in for the sub-layers that a block does not have."""
    stand_ins: dict[str, nn.Module] = {}
    for sublayer in gone:
        stand_ins |= family.replacements(block, sublayer)
    identities = [path for path, one in stand_ins.items() if isinstance(one, nn.Identity)]
    others: dict[str, Any] = {p: one for p, one in stand_ins.items() if p not in identities}
    return {
        "identities": identities,
        "zeros": {path: _among(one) for path, one in others.items()},
        "residuals": {p: list(z.residual) for p, z in others.items() if getattr(z, "residual", ())},
    }


def _among(zero: nn.Module) -> int:
    """Of how many things that a stand-in returns the zero is the first; 0 where it is all."""
    if isinstance(zero, Zero):
        return zero.among
    return 2 if isinstance(zero, ZeroAttention) else 0


def telling(block: nn.Module, told: Attributes) -> Edits:
    """What the modules of a block are told, and how the configs differ that they hold."""
    attributes: Edits = {}
    configs: Edits = {}
    for (path, name), value in told.items():
        if hasattr(value, "attribute_map"):
            configs[f"{path}.{name}"] = _settings(getattr(block.get_submodule(path), name), value)
        elif not isinstance(value, Tensor) and name != "kept":
            attributes[f"{path}.{name}"] = value
    return {"attributes": attributes, "configs": configs}


def _settings(own: Any, other: Any) -> Mapping[str, Any]:
    """The settings in which a config differs from a module's own, by all of their names."""
    known = vars(own)
    differing = {k: v for k, v in vars(other).items() if k not in known or known[k] != v}
    also = {a: differing[k] for a, k in other.attribute_map.items() if k in differing}
    return differing | also
