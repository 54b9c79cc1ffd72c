"""What a journal's header says of the parts of a run: short facts and digests."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

from evocompress.space.costs import LatencyTable
from evocompress.space.encoding import Encoding


def table_facts(table: LatencyTable) -> dict[str, Any]:
    """Where a table was measured, and a digest of what it says."""
    return asdict(table.made) | {"digest": _digest(table.to_json())}


def genes_digest(genes: Encoding) -> str:
    """Hex digits that hash units, levels and start of a search space."""
    names = [[unit.name for unit in members] for members in genes.members]
    keys = [[level.key for level in options] for options in genes.levels]
    return _digest([names, keys, genes.default.tolist(), genes.merges])


def _digest(content: Any) -> str:
    text = json.dumps(content, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
