"""Answers `Estimate` requests on a live model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

import torch
from torch import Tensor

from evocompress.compression.live_model import LiveModel
from evocompress.core.requests import Estimate, Estimation
from evocompress.core.types import Level
from evocompress.evaluation.estimates import ESTIMATES
from evocompress.evaluation.estimates.base import Rows, Subject
from evocompress.evaluation.proxies.evaluator import is_out_of_memory


class LiveEstimates:
    """Estimates on the micro-batches (b, S) that a proxy evaluates on, too.

    An estimate leaves the model in the state of its candidate. `levels` are those of each unit that
    estimates are about.
    """

    def __init__(
        self,
        live: LiveModel,
        micro_batches: Sequence[Tensor],
        levels: Mapping[str, Sequence[Level]] | None = None,
    ) -> None:
        self._live = live
        self._levels = levels or {}
        self._dense_states: dict[bytes, Tensor] = {}
        device = live.loaded.model.device
        self._ids = tuple(ids.to(device) for ids in micro_batches)

    def estimate(self, request: Estimate) -> Estimation:
        """The answer; without values where one is not finite or memory does not suffice.

        Raises:
            ValueError: The kind is unknown.
        """
        if request.kind not in ESTIMATES:
            raise ValueError(f"unknown estimate {request.kind!r}; there are {sorted(ESTIMATES)}")
        ids = [self._ids[index] for index in request.micro_batches]
        try:
            subject = Subject(self._live, ids, request.candidate, self._levels, self._dense_states)
            rows = ESTIMATES[request.kind](subject)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            return _estimation(request, rows)
        self._live.restore()
        if self._live.loaded.model.device.type == "cuda":
            torch.cuda.empty_cache()
        return Estimation(request, (), (), failed="out of memory")


def _estimation(request: Estimate, rows: Rows) -> Estimation:
    for name, row in rows.items():
        if not all(map(isfinite, row)):
            return Estimation(request, (), (), failed=f"{request.kind} of {name} is not finite")
    return Estimation(request, tuple(rows), tuple(rows.values()))
