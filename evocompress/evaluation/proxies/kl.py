"""Kullback-Leibler divergence from the dense model to the candidate, in top-k buckets.

EvoPress (2410.14649) measures the token mean of KL(dense || candidate), and its released code
offers one that renormalises both models over the dense model's top k tokens. Here the other
tokens stay in, as one bucket more: by the log-sum inequality the result is a lower bound of the
divergence over the whole vocabulary, and equal to it for k = V.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from evocompress.compression.live_model import LiveModel
from evocompress.core.config import ProxyConfig
from evocompress.core.errors import ModelError
from evocompress.core.files import naming_disk_errors
from evocompress.evaluation.proxies.base import LogitsProxy, States
from evocompress.healing.tuned import Treatments
from evocompress.models import vocabulary
from evocompress.models.device_copy import to_device
from evocompress.models.head import bucket_log_probabilities


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
        return Buckets(
            *(to_device(tensor, device) for tensor in (self.tokens, self.top, self.rest))
        )

    def divergence(self, top: Tensor, rest: Tensor) -> Tensor:
        """KL(self || another distribution in the same buckets) in nats, float32 (R,)."""
        of_top = (self.top.exp() * (self.top - top)).sum(-1)
        return of_top + self.rest.exp() * (self.rest - rest)


class DivergenceProxy(LogitsProxy[Buckets]):
    """KL(dense || candidate) on calibration tokens, in nats per position."""

    name: ClassVar[str] = "kl"

    def __init__(
        self,
        live: LiveModel,
        micro_batches: Sequence[Tensor],
        config: ProxyConfig,
        treatments: Treatments | None = None,
    ) -> None:
        """See `LogitsProxy`; `config` gives the number of buckets."""
        super().__init__(live, micro_batches, config, treatments)
        self._top_k = config.top_k
        self._in_slices = vocabulary.in_slices(self._family, self._model)
        self._files = TargetFiles() if config.targets == "disk" else None

    @torch.inference_mode()
    def _make_targets(self, micro_batch: int, dense: States) -> list[Buckets]:
        hidden = dense(micro_batch).to(self._model.device)
        buckets = [self._buckets(chunk) for chunk in self._chunks(hidden)]
        if not all(part.rest.isfinite().all() for part in buckets):
            raise ModelError(
                f"the dense model's logits are not finite in {self._model.dtype}; "
                "set model.dtype to bfloat16 or float32"
            )
        return buckets if self._files is None else self._files.kept(buckets)

    def _chunks(self, hidden: Tensor) -> Iterator[Tensor]:
        """Logits (R, V), or states (R, H) where the head is run in slices of the vocabulary."""
        if not self._in_slices:
            return super()._chunks(hidden)
        return vocabulary.row_chunks(self._family, hidden)

    def _buckets(self, chunk: Tensor) -> Buckets:
        """The dense model's distribution; at most V tokens are kept."""
        if self._in_slices:
            tokens = vocabulary.likeliest(self._family, self._model, chunk, self._top_k)
        else:
            count = min(self._top_k, chunk.shape[-1])
            tokens = chunk.topk(count, sorted=False).indices.int()
        return Buckets(tokens, *self._log_probabilities(chunk, tokens))

    def _log_probabilities(self, chunk: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Those of the buckets `tokens` (R, k), and of the rest."""
        if self._in_slices:
            return vocabulary.log_probabilities(self._family, self._model, chunk, tokens)
        return bucket_log_probabilities(chunk, tokens)

    def _row_values(self, chunk: Tensor, target: Buckets) -> Tensor:
        target = target.to(chunk.device)
        return target.divergence(*self._log_probabilities(chunk, target.tokens))


class TargetFiles:
    """Targets in nameless files, mapped: no memory is theirs but the disk's cache.

    A file without a name is gone with whoever mapped it, however the process ends.
    """

    def kept(self, targets: Sequence[Buckets]) -> list[Buckets]:
        """The targets of a micro-batch, out of a new file."""
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
