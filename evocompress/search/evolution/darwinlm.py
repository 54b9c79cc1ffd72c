"""DarwinLM (Tang et al. 2025, 2502.07780): what a candidate is worth after some fine-tuning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from evocompress.core.fields import Number, Tokens
from evocompress.core.finetuning import Recipe
from evocompress.search.evolution.evopress import EvoPress


class DarwinLM(EvoPress):
    """Evolution like EvoPress whose stages fine-tune each candidate before they measure it.

    So it looks for what is good after a training, not before one. The tuned weights are
    forgotten: a survivor is fine-tuned anew, and longer, in the next stage.

    ```yaml
    space: {width: {units: [mlp], multiple_of: 16}, budget: {params: 0.9}}
    search: {name: darwinlm, generations: 10}
    ```

    Examples:
        >>> from evocompress.testing.examples import winner
        >>> winner(DarwinLM)
        {'0.mlp': 'channels=16', '3.mlp': 'channels=16'}
    """

    class Settings(EvoPress.Settings):
        """Settings of `DarwinLM`; the published schedule is that of widths in any space.

        Attributes:
            tuning_tokens: Tokens that each stage fine-tunes its candidates on.
            learning_rate: AdamW's, the same in every step.
        """

        kind: Literal["auto", "sparsity", "depth", "width"] = "width"
        tuning_tokens: Annotated[
            tuple[Annotated[Tokens, Field(ge=2)], ...], Field(min_length=1, max_length=100)
        ] = (10_000, 50_000, 100_000, 200_000)
        learning_rate: Annotated[Number, Field(gt=0, le=1)] = 1e-5

        @property
        def recipes(self) -> tuple[Recipe, ...]:
            """How each stage fine-tunes."""
            return tuple(Recipe(tokens, self.learning_rate) for tokens in self.tuning_tokens)
