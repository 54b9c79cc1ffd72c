"""The run's model in another process."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from evocompress.core.config import ModelConfig
from evocompress.core.env_vars import EnvVars
from evocompress.core.errors import ModelError

if TYPE_CHECKING:
    from evocompress.models.loading import LoadedModel


@dataclass(frozen=True)
class Replica:
    """A model that other processes load, too, and the fingerprint that it must turn out to have."""

    model: ModelConfig
    fingerprint: str
    threads: int
    env_vars: EnvVars = field(default=EnvVars(), kw_only=True)

    def load(self) -> LoadedModel:
        """The model, in this process.

        Raises:
            ModelError: It is another one, or cannot be loaded here.
        """
        self.env_vars.enter()
        import torch

        from evocompress.models.loading import load_as

        torch.set_num_threads(self.threads)
        loaded = load_as(self.model)
        if loaded.fingerprint != self.fingerprint:
            raise ModelError(
                f"a worker found model {loaded.fingerprint} at {self.model.source}, not "
                f"{self.fingerprint}: give all nodes the same model"
            )
        return loaded
