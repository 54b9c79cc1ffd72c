"""In which order to evaluate candidates so that each runs as few blocks as possible.

Candidates that agree up to a block share what leaves it, so together they are a trie over the
blocks. Walked depth first, every node is computed once, although only the states along one path
are kept (`evocompress.evaluation.proxies.prefix`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evocompress.core.types import Candidate, Unit
from evocompress.evaluation.proxies.prefix import BlockLevels, levels_by_block


def depth_first(candidates: Sequence[Candidate], units: Mapping[str, Unit]) -> list[int]:
    """Indices of candidates in the order of a walk over their trie, equal ones as they come.

    The order depends on nothing else, so that an interrupted run goes on in the same one.
    """
    paths = [[_text(of) for of in levels_by_block(each, units)] for each in candidates]
    return sorted(range(len(candidates)), key=paths.__getitem__)


def _text(levels: BlockLevels) -> str:
    return ";".join(f"{name}:{level.key}" for name, level in levels)
