"""What a proxy is, and what it measures; `evocompress.evaluation.proxies.evaluator` runs it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Protocol

from torch import Tensor

from evocompress.core.config import ProxyConfig
from evocompress.core.requests import Evaluate, Result
from evocompress.models.head import output_chunks
from evocompress.models.loading import LoadedModel
from evocompress.models.tasks import Task


class Proxy(Protocol):
    """How good candidates are, cheaply; lower is better.

    Examples:
        >>> from evocompress.evaluation.proxies import MetricProxy
        >>> hasattr(MetricProxy, "evaluate"), hasattr(MetricProxy, "stream")
        (True, True)
    """

    def evaluate(self, requests: Sequence[Evaluate]) -> list[Result]:
        """The results, in the order of the requests."""
        ...

    def stream(self, requests: Sequence[Evaluate]) -> Iterator[Result]:
        """The results, each as soon as it is there, in whatever order is cheapest."""
        ...


class Metric(ABC):
    """What is measured at each position of a candidate; it keeps nothing about candidates.

    Every position counts but the last of each sequence; where the model's task is about whole
    sequences, each counts as one position. A metric turns final hidden states into chunks of
    rows, a row for each position, and gives each row a value against its target.

    Args:
        loaded: The model, which is a candidate while chunks and values are asked for.
        config: Settings of proxies.

    Attributes:
        name: What a value is called where one is not finite.
        meaning: What a value is, with its unit, for the axes of figures.
        version: Changes with the values; those of two versions do not compare. ``None`` is the
            first.
        by_logits: Whether the output head is needed.
        on_disk: Whether targets can be kept in files (``proxy.targets: disk``).

    Examples:
        >>> from evocompress.evaluation.proxies import PROXIES
        >>> PROXIES["kl"].meaning
        'KL to the dense model, nats/token'
    """

    name: ClassVar[str]
    meaning: ClassVar[str]
    version: ClassVar[int | None] = None
    by_logits: ClassVar[bool] = True
    on_disk: ClassVar[bool] = False

    def __init__(self, loaded: LoadedModel, config: ProxyConfig) -> None:
        self.family, self.model, self.config = loaded.family, loaded.model, config

    @classmethod
    @abstractmethod
    def serves(cls, task: Task) -> bool:
        """Whether it can tell two outputs of models for a task apart."""

    @classmethod
    def target_bytes(cls, config: ProxyConfig, vocabulary: int) -> int | None:
        """Bytes of a position's target, from above, for a size of the vocabulary.

        They are ``None`` where the target is a final state.
        """
        return None

    def chunks(self, hidden: Tensor) -> Iterator[Tensor]:
        """The rows (R, ...) of final hidden states (b, S, H); by default the model's outputs."""
        return output_chunks(self.family, self.model, hidden)

    def targets(self, batch: Tensor, dense: Callable[[], Tensor]) -> list[Any]:
        """What each chunk is compared with; by default the dense model's own chunk.

        Args:
            batch: Token ids (b, S), or what else the model takes.
            dense: Runs the dense model, whose final hidden states (b, S, H) it gives.
        """
        return list(self.chunks(dense()))

    @abstractmethod
    def values(self, chunk: Tensor, target: Any) -> Tensor:
        """Values (R,), none negative, of the rows (R, ...) of a chunk against their targets."""
