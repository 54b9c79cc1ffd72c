"""Proxies: how good a candidate is, judged on a few thousand calibration tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from evocompress.apply import LiveModel
from evocompress.config import ProxyConfig
from evocompress.proxies.base import Proxy
from evocompress.proxies.cosine import CosineProxy
from evocompress.proxies.js import JensenShannonProxy
from evocompress.proxies.kl import DivergenceProxy
from evocompress.proxies.perplexity import PerplexityProxy

PROXIES: dict[str, Callable[[LiveModel, Sequence[Tensor], ProxyConfig], Proxy]] = {
    "kl": DivergenceProxy,
    "perplexity": PerplexityProxy,
    "js": JensenShannonProxy,
    "cosine": CosineProxy,
}

__all__ = ["PROXIES", "DivergenceProxy", "PerplexityProxy", "Proxy"]
