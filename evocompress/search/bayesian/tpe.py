"""The tree-structured Parzen estimator (Bergstra et al. 2011), as Optuna has it.

Two densities over the levels are fitted, one to the best candidates and one to the others, and
what is likely under the first and unlikely under the second is proposed. The multivariate form
(Falkner et al. 2018, 1807.01774) keeps levels together that were good together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from evocompress.search.bayesian.sampled import SampledSearcher

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


class TPE(SampledSearcher):
    """Minimises the proxy's value under the budget with Optuna's TPE sampler.

    ```yaml
    space: {drop: {}, budget: {params: 0.8}}
    search: {name: tpe, candidates: 60, finalists: 4, final_tokens: 16384}
    ```

    Examples:
        >>> from evocompress.testing.examples import winner
        >>> winner(TPE)
        {'1.attention': 'drop', '3.mlp': 'drop'}
    """

    name = "tpe"

    def _sampler(self, seed: int) -> BaseSampler:
        from optuna.samplers import TPESampler

        # A constant liar holds what is being measured for bad, so that a batch spreads out.
        return TPESampler(
            n_startup_trials=self.settings.startup,
            multivariate=True,
            constant_liar=True,
            seed=seed,
        )
