"""Held-out quality of candidates, over the whole vocabulary, before any healing."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

from cells import cell

from evocompress.apply import LiveModel
from evocompress.evaluation import heldout_quality
from evocompress.types import Candidate
from evocompress.workbench import Workbench


def heldout(bench: Workbench, candidate: Candidate, folder: Path) -> dict[str, float]:
    """KL to the dense model (nats/token), that of its top 256 buckets, and perplexity.

    Measured once for each candidate and library, and kept in a folder.
    """
    library = bench.library.fingerprint if bench.library else "none"
    return cell(folder, f"{library}-{candidate.id}", lambda: _measure(bench, candidate))


def _measure(bench: Workbench, candidate: Candidate) -> dict[str, float]:
    dense = bench.loaded.model
    twin = copy.deepcopy(dense)
    LiveModel(replace(bench.loaded, model=twin), bench.library).apply(candidate)
    quality = heldout_quality(dense, {"candidate": twin}, bench.calibration.heldout)["candidate"]
    return {"kl": quality.kl, "kl_top256": quality.kl_topk, "perplexity": quality.perplexity}
