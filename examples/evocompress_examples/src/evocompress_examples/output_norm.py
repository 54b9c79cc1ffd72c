"""Heads and channels stay whose columns of the output matrix are the largest.

``library: {width_criterion: output_norm}``
"""

from collections.abc import Sequence

from evocompress.compression.criteria import Cut, Statistics, Structure, StructuredCriterion, Width
from evocompress.compression.criteria.structure import cut_by_scores


def cut(structure: Structure, statistics: Statistics, widths: Sequence[Width]) -> list[Cut]:
    """Keeps the items with the largest sum of squares, and leaves their weights alone.

    Args:
        structure: The sub-layer.
        statistics: Of the inputs of its output matrix; not read.
        widths: How many groups, and items in each, every result keeps.
    """
    squares = structure.output.square().sum(0)
    return cut_by_scores(structure, widths, squares.view(structure.items, -1).sum(1))


OUTPUT_NORM = StructuredCriterion(needs=frozenset(), adds_bias=False, cut=cut)
