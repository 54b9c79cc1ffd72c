"""Proxies: how good a candidate is, judged on a few thousand calibration tokens.

A proxy of one's own is a `Metric` in a file, and a line in `PROXIES` or an entry point.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from evocompress.compression.live_model import LiveModel
from evocompress.core.config import ProxyConfig
from evocompress.core.errors import ConfigError
from evocompress.core.registry import Registry
from evocompress.evaluation.proxies.base import Metric, Proxy
from evocompress.evaluation.proxies.cosine import Cosine
from evocompress.evaluation.proxies.embedding import EmbeddingDistance
from evocompress.evaluation.proxies.evaluator import MetricProxy
from evocompress.evaluation.proxies.js import JensenShannon
from evocompress.evaluation.proxies.kl import Divergence
from evocompress.evaluation.proxies.perplexity import LogPerplexity
from evocompress.evaluation.proxies.score import ScoreError
from evocompress.healing.tuned import Treatments
from evocompress.models.loading import LoadedModel
from evocompress.models.tasks import Task

PROXIES: Registry[type[Metric]] = Registry(
    "proxy",
    "evocompress.proxies",
    {
        "kl": Divergence,
        "perplexity": LogPerplexity,
        "js": JensenShannon,
        "cosine": Cosine,
        "embedding": EmbeddingDistance,
        "score": ScoreError,
    },
    lambda found: isinstance(found, type) and issubclass(found, Metric),
)
"""The values of `proxy.kind`."""

__all__ = [
    "PROXIES",
    "Metric",
    "Proxy",
    "check_proxy",
    "proxy_facts",
    "kinds_for",
    "make_proxy",
    "meaning_of",
]


def make_proxy(
    live: LiveModel,
    micro_batches: Sequence[Tensor],
    config: ProxyConfig,
    treatments: Treatments | None = None,
) -> MetricProxy:
    """The proxy of a model on micro-batches (b, S); see `MetricProxy`."""
    metric = PROXIES[config.kind](live.loaded, config)
    return MetricProxy(live, micro_batches, metric, treatments)


def kinds_for(task: Task) -> tuple[str, ...]:
    """The proxies for models of a task, the usual one first."""
    return tuple(kind for kind, metric in PROXIES.usable().items() if metric.serves(task))


def meaning_of(kind: str) -> str:
    """The meaning of values of a kind of proxy, also one that is not here any more."""
    return PROXIES[kind].meaning if kind in PROXIES else f"value of proxy {kind}"


def proxy_facts(config: ProxyConfig) -> dict[str, Any]:
    """What values depend on of a proxy's settings; its version as well where it has one."""
    version = PROXIES[config.kind].version
    return {
        **config.model_dump(exclude={"targets"}),
        **({} if version is None else {"version": version}),
    }


def check_proxy(kind: str, loaded: LoadedModel) -> None:
    """Whether a proxy can tell how good candidates of a model are."""
    task = loaded.family.task
    if not PROXIES[kind].serves(task):
        raise ConfigError(
            f"proxy.kind={kind} is not for {loaded.source}, a model for {task.name}: choose "
            f"{' or '.join(kinds_for(task))}"
        )
