"""Proxies: how good a candidate is, judged on a few thousand calibration tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from evocompress.compression.live_model import LiveModel
from evocompress.core.config import ProxyConfig
from evocompress.core.errors import ConfigError
from evocompress.evaluation.proxies.base import Proxy
from evocompress.evaluation.proxies.cosine import CosineProxy
from evocompress.evaluation.proxies.embedding import EmbeddingProxy
from evocompress.evaluation.proxies.js import JensenShannonProxy
from evocompress.evaluation.proxies.kl import DivergenceProxy
from evocompress.evaluation.proxies.perplexity import PerplexityProxy
from evocompress.evaluation.proxies.score import ScoreProxy
from evocompress.healing.tuned import Treatments
from evocompress.models.loading import LoadedModel


class ProxyFactory(Protocol):
    """Makes a proxy."""

    def __call__(
        self,
        live: LiveModel,
        micro_batches: Sequence[Tensor],
        config: ProxyConfig,
        treatments: Treatments | None = None,
    ) -> Proxy:
        """The proxy of a model on micro-batches (b, S); see `PositionProxy`."""
        ...


PROXIES: dict[str, ProxyFactory] = {
    "kl": DivergenceProxy,
    "perplexity": PerplexityProxy,
    "js": JensenShannonProxy,
    "cosine": CosineProxy,
    "embedding": EmbeddingProxy,
    "score": ScoreProxy,
}

VERSIONS = {"embedding": 2}
"""Of the proxies whose values are other ones than once; values of two versions do not compare."""

__all__ = ["PROXIES", "DivergenceProxy", "PerplexityProxy", "Proxy", "check_proxy", "facts"]


def facts(config: ProxyConfig) -> dict[str, Any]:
    """What values depend on of a proxy's settings; its version as well where it has one."""
    version = {"version": VERSIONS[config.kind]} if config.kind in VERSIONS else {}
    return {**config.model_dump(exclude={"targets"}), **version}


def check_proxy(kind: str, loaded: LoadedModel) -> None:
    """Whether a proxy can tell how good candidates of a model are.

    Raises:
        ConfigError: It is for models of another task.
    """
    task = loaded.family.task
    if kind not in task.proxies:
        raise ConfigError(
            f"proxy.kind={kind} is not for {loaded.source}, a model for {task.name}: choose "
            f"{' or '.join(task.proxies)}"
        )
