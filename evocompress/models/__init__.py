"""Models as they are loaded: checkpoints, families, and what a model computes.

`checkpoints` and `stored_tensors` find and check files, `loading` makes a `LoadedModel` of them,
`families` says where the blocks, heads and channels of an architecture are, `modeling` has the
classes of checkpoints whose layers differ. `head`, `vocabulary`, `backward` and `streaming` run a
model in the memory that there is.

Interface: `evocompress.models.loading.load`, `evocompress.models.families.base.Family` (a new
one is one file and one line, see docs/families.md), `evocompress.models.modeling.register`.

Imported by: `compression`, `distributed`, `evaluation`, `export`, `healing`, `hf`, `pipeline`,
`testing`.
"""

from __future__ import annotations

from typing import Any

__all__ = ["LoadedModel", "load"]


def __getattr__(name: str) -> Any:
    """`load` and `LoadedModel`, with torch and transformers only when they are asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from evocompress.models import loading

    return getattr(loading, name)
