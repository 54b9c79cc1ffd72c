"""Fine-tuning of a candidate before it is measured: a treatment, in journals. No torch here."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from functools import cached_property

from evocompress.core.requests import Evaluate


@dataclass(frozen=True)
class Recipe:
    """Fine-tuning of all weights of a candidate (DarwinLM, Tang et al. 2025, 2502.07780).

    The loss is the cross-entropy of the next token, mean over one sequence a step, the optimizer
    AdamW at a constant rate. Weights that are zero stay zero. Sequences are those of the library
    part of the calibration data, always in the same order and, where there are too few, again
    from the first on; so what a longer recipe trains on begins with that of a shorter one.

    Attributes:
        tokens: How many it trains on; the last sequence is cut to make it as many.
        learning_rate: Of every step.
    """

    tokens: int
    learning_rate: float = 1e-5

    @cached_property
    def treatment(self) -> str:
        """Sixteen hex digits that name the recipe; its data belong to the run."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def before(self, request: Evaluate) -> Evaluate:
        """The request, to be answered by the candidate once it is fine-tuned."""
        return replace(request, treatment=self.treatment, tuning_tokens=self.tokens)
