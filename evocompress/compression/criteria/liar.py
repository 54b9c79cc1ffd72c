"""Least-squares reconstruction after any structured criterion (LIAR, Wang et al. 2024, 2407.13331).

The inputs that were cut are written as linear combinations of those that stay, and what the
output matrix did with them is added to its other columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from evocompress.compression.criteria.base import Statistics
from evocompress.compression.criteria.factor import factorise, scaled_hessian
from evocompress.compression.criteria.structure import Cut, Structure


def reconstructed(structure: Structure, statistics: Statistics, cuts: Sequence[Cut]) -> list[Cut]:
    """Refit the output matrix of each cut to the outputs of the dense one.

    With kept inputs k and cut ones p the new weights are W_k + W_p·C_pk·(C_kk + r·I)⁻¹, where
    C is the Gram matrix and r is the statistics' damping times its mean diagonal. Only the
    dense weights and the choice of the items enter, no update that the criterion made;
    structured OBS ends at these very weights, so after it nothing changes where there is no bias.

    Where a cut has a bias and the sums of the inputs are known, the bias is refit too: C is
    centred, and the bias makes the mean output that of the dense matrix. This affine fit differs
    from what structured OBS, which keeps an own bias, ends at. A bias whose inputs' sums are not
    known stays as it is.

    The statistics have a Gram matrix. Cuts are left alone; one at full width is given back.

    Raises:
        LibraryError: The statistics are unusable.
        ValueError: The statistics have no Gram matrix.
    """
    if statistics.gram is None:
        raise ValueError("a reconstruction needs the Gram matrix of the inputs")
    affine = statistics.sums is not None and any(one.bias is not None for one in cuts)
    gram = _centred(statistics.gram, statistics) if affine else statistics.gram
    hessian = scaled_hessian(gram, statistics.sequences)

    def refit(one: Cut) -> Cut:
        if len(one.items) == structure.items:
            return one
        kept = structure.columns(one.items)
        weight = _fitted(structure.output, hessian, kept, statistics.damping)
        bias = _bias(structure, statistics.means, weight, kept) if affine else one.bias
        return replace(one, weight=weight, bias=bias)

    return [refit(one) for one in cuts]


def _centred(gram: Tensor, statistics: Statistics) -> Tensor:
    """Σ (x − mean)(x − mean)ᵀ over the tokens."""
    return gram.addr(statistics.means, statistics.means, alpha=-statistics.tokens)


def _fitted(output: Tensor, hessian: Tensor, kept: Tensor, damping: float) -> Tensor:
    """The columns that stay, with what they can do for the others."""
    lost = torch.ones(output.shape[1], dtype=torch.bool, device=output.device)
    lost[kept] = False
    diagonal = hessian.diagonal()
    alive = torch.where(diagonal == 0, 1.0, diagonal)
    ridge = damping * float(alive.mean() / alive[kept].mean())
    upper = factorise(hessian[kept][:, kept], ridge).upper
    return output[:, kept] + output[:, lost] @ hessian[lost][:, kept] @ upper.T @ upper


def _bias(structure: Structure, means: Tensor, weight: Tensor, kept: Tensor) -> Tensor:
    """The bias with which the mean output is that of the dense matrix."""
    own = 0.0 if structure.bias is None else structure.bias
    return torch.mv(structure.output, means) - torch.mv(weight, means[kept]) + own
