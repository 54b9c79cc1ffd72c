"""Kullback-Leibler divergence from the dense model to the candidate, in top-k buckets.

EvoPress (2410.14649) measures the token mean of KL(dense || candidate), and its released code
offers one that renormalises both models over the dense model's top k tokens. Here the other
tokens stay in, as one bucket more: by the log-sum inequality the result is a lower bound of the
divergence over the whole vocabulary, and equal to it for k = V.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryFile, gettempdir

import numpy as np
import torch
from torch import Tensor

from evocompress.core.config import ProxyConfig
from evocompress.core.errors import ModelError
from evocompress.core.files import naming_disk_errors
from evocompress.evaluation.proxies.base import Metric
from evocompress.models import vocabulary
from evocompress.models.device_copy import to_device
from evocompress.models.head import bucket_log_probabilities
from evocompress.models.loading import LoadedModel
from evocompress.models.tasks import Task


@dataclass(frozen=True)
class Buckets:
    """The dense model's distribution at R positions.

    Attributes:
        tokens: Its k likeliest tokens (R, k), int32.
        top: Their log-probabilities (R, k), float32.
        rest: Log-probability of all other tokens together (R,), float32.
    """

    tokens: Tensor
    top: Tensor
    rest: Tensor

    def to(self, device: torch.device) -> Buckets:
        """The same on a device."""
        return Buckets(*(to_device(each, device) for each in vars(self).values()))

    def divergence(self, top: Tensor, rest: Tensor) -> Tensor:
        """KL(self || another distribution) in nats, float32 (R,).

        `top` (R, k) and `rest` (R,) are the other's log-probabilities in the same buckets.
        """
        of_top = (self.top.exp() * (self.top - top)).sum(-1)
        return of_top + self.rest.exp() * (self.rest - rest)


class Divergence(Metric):
    """KL(dense || candidate) on calibration tokens, in nats per position."""

    name = "kl"
    meaning = "KL to the dense model, nats/token"
    on_disk = True

    def __init__(self, loaded: LoadedModel, config: ProxyConfig) -> None:
        """See `Metric`; `config` gives the number of buckets."""
        super().__init__(loaded, config)
        self._in_slices = vocabulary.in_slices(self.family, self.model)

    @classmethod
    def serves(cls, task: Task) -> bool:
        """Language models and classifiers."""
        return task.compared == "logits"

    @classmethod
    def target_bytes(cls, config: ProxyConfig, vocabulary: int) -> int:
        """Those of `Buckets`: a token and its log-probability each, and that of the rest."""
        each = torch.int32.itemsize + torch.float32.itemsize
        return each * min(config.top_k, vocabulary) + torch.float32.itemsize

    def chunks(self, hidden: Tensor) -> Iterator[Tensor]:
        """Logits (R, V), or states (R, H) where the head is run in slices of the vocabulary."""
        if not self._in_slices:
            return super().chunks(hidden)
        return vocabulary.row_chunks(self.family, hidden)

    def targets(self, batch: Tensor, dense: Callable[[], Tensor]) -> list[Buckets]:
        """The dense model's distribution at each position.

        Raises:
            ModelError: Its logits are not finite.
        """
        buckets = [self._buckets(chunk) for chunk in self.chunks(dense())]
        if not all(part.rest.isfinite().all() for part in buckets):
            raise ModelError(
                f"the dense model's logits are not finite in {self.model.dtype}; "
                "set model.dtype to bfloat16 or float32"
            )
        return _mapped(buckets) if self.config.targets == "disk" else buckets

    def _buckets(self, chunk: Tensor) -> Buckets:
        """The dense model's distribution; at most V tokens are kept."""
        if self._in_slices:
            tokens = vocabulary.likeliest(self.family, self.model, chunk, self.config.top_k)
        else:
            count = min(self.config.top_k, chunk.shape[-1])
            tokens = chunk.topk(count, sorted=False).indices.int()
        return Buckets(tokens, *self._log_probabilities(chunk, tokens))

    def _log_probabilities(self, chunk: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Those of the buckets `tokens` (R, k), and of the rest."""
        if self._in_slices:
            return vocabulary.log_probabilities(self.family, self.model, chunk, tokens)
        return bucket_log_probabilities(chunk, tokens)

    def values(self, chunk: Tensor, target: Buckets) -> Tensor:
        """The divergence at each position."""
        target = target.to(chunk.device)
        return target.divergence(*self._log_probabilities(chunk, target.tokens))


def _mapped(targets: Sequence[Buckets]) -> list[Buckets]:
    """The targets of a micro-batch in a nameless file: no memory is theirs but the disk's cache.

    A file without a name is gone with whoever mapped it, however the process ends.
    """
    names = [field.name for field in fields(Buckets)]
    tensors = [getattr(target, name).cpu() for target in targets for name in names]
    with naming_disk_errors(Path(gettempdir()) / "targets"), TemporaryFile() as file:
        for tensor in tensors:
            file.write(tensor.contiguous().numpy().data)
        file.flush()
        mapped = torch.from_numpy(np.memmap(file, np.uint8, "c"))
    parts = torch.split(mapped, [tensor.nbytes for tensor in tensors])
    found = iter(
        part.view(tensor.dtype).view(tensor.shape)
        for part, tensor in zip(parts, tensors, strict=True)
    )
    return [Buckets(*(next(found) for _ in names)) for _ in targets]
