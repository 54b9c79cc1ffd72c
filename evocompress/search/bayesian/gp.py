"""Bayesian optimisation with a Gaussian process, as Optuna has it: for spaces of few genes.

A Matern kernel with a length scale for each gene is fitted, and what promises the largest
improvement (logEI, Ament et al. 2023, 2310.20708) is proposed; within a batch, given what is being
measured already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from evocompress.core.errors import ConfigError
from evocompress.search.bayesian.sampled import SampledSearcher

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

MOST_GENES = 20
"""With 20 genes a proposal takes seconds; with 60 one took 223."""


class GP(SampledSearcher):
    """Minimises the proxy's value under the budget with Optuna's GP sampler.

    ```yaml
    space: {drop: {units: [block]}, budget: {params: 0.8}}
    search: {name: gp, candidates: 6, startup: 3, finalists: 2}
    ```

    Examples:
        >>> from evocompress.testing.examples import winner
        >>> winner(GP)
        {'1.attention': 'drop', '1.mlp': 'drop'}
    """

    name = "gp"

    def check(self) -> None:
        """Refuses a space of many genes."""
        super().check()
        count = int((self.space.encoding.sizes > 1).sum())
        if count > MOST_GENES:
            raise ConfigError(
                f"search.name: gp takes at most {MOST_GENES} units with a choice of levels, and "
                f"this space has {count}: use tpe, or a smaller space (space.drop.units [block], "
                "space.width.uniform, fewer matrices in space.sparsity.match)"
            )

    def _sampler(self, seed: int) -> BaseSampler:
        from optuna.samplers import GPSampler

        return GPSampler(
            n_startup_trials=self.settings.startup, warn_independent_sampling=False, seed=seed
        )
