"""Held-out quality of candidates, over the whole vocabulary, before any healing."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

from cells import cell
from torch import Tensor
from transformers import PreTrainedModel

from evocompress.compression.live_model import LiveModel
from evocompress.core.types import Candidate
from evocompress.evaluation.heldout import heldout_quality
from evocompress.pipeline.context import RunContext

EVERYTHING = slice(None)


def heldout(
    context: RunContext, candidate: Candidate, folder: Path, part: slice = EVERYTHING
) -> dict[str, float]:
    """KL to the dense model (nats/token), that of its top 256 buckets, and perplexity.

    Measured once for each candidate, library and part of the held-out sequences, and kept in a
    folder.
    """
    library = context.library.fingerprint if context.library else "none"
    suffix = "" if part == EVERYTHING else f"-{part.start or 0}-{part.stop or 'end'}"
    name = f"{library}-{candidate.id}{suffix}"
    return cell(folder, name, lambda: _measure(context, candidate, part))


REMEMBERED_BYTES = 2**31


class Remembered:
    """A model that keeps the logits of the first sequences that it sees, in its own dtype."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.device = model.device
        self._model = model
        self._logits: dict[bytes, Tensor] = {}
        self._bytes = 0

    def __call__(self, ids: Tensor, *, use_cache: bool) -> SimpleNamespace:
        """What the model gives for token ids (B, S), of which only the logits are kept."""
        key = ids.cpu().numpy().tobytes()
        logits = self._logits.get(key)
        if logits is None:
            logits = self._model(ids, use_cache=use_cache).logits
            if self._bytes + logits.nbytes <= REMEMBERED_BYTES:
                self._logits[key] = logits
                self._bytes += logits.nbytes
        return SimpleNamespace(logits=logits)


@cache
def _remembered(model: PreTrainedModel) -> Remembered:
    """One for each model: a comparison measures many candidates on the same sequences."""
    return Remembered(model)


def _measure(context: RunContext, candidate: Candidate, part: slice) -> dict[str, float]:
    dense = context.loaded.model
    twin = copy.deepcopy(dense)
    LiveModel(replace(context.loaded, model=twin), context.library).apply(candidate)
    sequences = context.calibration.heldout[part]
    quality = heldout_quality(_remembered(dense), {"candidate": twin}, sequences)["candidate"]
    return {"kl": quality.kl, "kl_top256": quality.kl_topk, "perplexity": quality.perplexity}
