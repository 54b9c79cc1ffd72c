"""A knapsack over second-order harms at the dense model, and no search: a baseline."""

from __future__ import annotations

from evocompress.core.errors import ConfigError
from evocompress.core.fields import Tokens
from evocompress.core.requests import Estimate
from evocompress.core.types import Candidate
from evocompress.search.allocation.knapsack import knapsack
from evocompress.search.base import CandidateSettings
from evocompress.search.generator_searcher import AskTell, GeneratorSearcher, estimated
from evocompress.search.surrogates.second_order import expansion

_FORWARDS = 3
"""What an estimate's backward pass costs, in forward passes."""


class FisherKnapsack(GeneratorSearcher):
    """Takes the harms of all changes to add up, each ½·mean⟨gradient, change⟩², and measures that.

    The gradients are those of the log-likelihood of tokens that the dense model draws, so this is
    the quadratic form of its Fisher information for every change alone. Allocators of bits use it
    with a diagonal, as PrismaQuant, or without the products of different tokens and outputs, as the
    gradient score of AutoQuantize.

    ```yaml
    space: {sparsity: {match: ['*.o_proj'], target: 0.5, levels: 3}}
    search: {name: fisher_knapsack, estimate_tokens: 8192}
    ```

    Examples:
        >>> from evocompress.testing.examples import winner
        >>> winner(FisherKnapsack)
        {'0.self_attn.o_proj': 'zeros=65', '1.self_attn.o_proj': 'zeros=191',
        '2.self_attn.o_proj': 'zeros=128', '3.self_attn.o_proj': 'zeros=128'}
    """

    class Settings(CandidateSettings):
        """Settings of `FisherKnapsack`.

        Attributes:
            estimate_tokens: Tokens of the estimate; `candidate_tokens` if left out.
        """

        estimate_tokens: Tokens | None = None

    settings: Settings

    def prepare(self) -> None:
        """Draws the tokens of the estimate."""
        tokens = self.settings.estimate_tokens
        self._estimate_batches = self.chosen(tokens, "search.estimate_tokens")

    def check(self) -> None:
        """Refuses a space with units that can be dropped."""
        genes = self.space.encoding
        if genes.droppable.size or not (genes.matrices.size or genes.widths.size):
            raise ConfigError(
                "search.name: fisher_knapsack knows small changes, and a drop is none: give "
                "space.sparsity, space.width or space.bits without space.drop"
            )

    def search(self) -> AskTell[None]:
        """The least sum of harms."""
        request = Estimate(Candidate(), "curvature", self._estimate_batches, _FORWARDS)
        estimation = yield from estimated(request)
        if estimation.failed is not None:
            return
        start = self.space.encoding.default
        best = knapsack(self.space, expansion(self.space, estimation).harms(), start)
        yield from self.conclude(start if best is None else best)
