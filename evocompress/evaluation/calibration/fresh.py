"""Text for healing that neither library, nor search, nor held-out part have.

Fresh text teaches more than what was compressed on (RS2, 2305.18424): sources are read on until
there is enough, and only then is anything repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from evocompress.core.config import CalibrationConfig, HealConfig
from evocompress.core.errors import DataError
from evocompress.evaluation.calibration.calibration import Calibration, check_writer
from evocompress.evaluation.calibration.images import image_bytes, images
from evocompress.evaluation.calibration.overlap import LONGEST_RUN, Seen, seen_in
from evocompress.evaluation.calibration.parts import SequenceForm
from evocompress.evaluation.calibration.self_text import Writing, self_written
from evocompress.evaluation.calibration.sources import SELF, token_streams
from evocompress.evaluation.calibration.special import check_padding, check_vocabulary, surroundings
from evocompress.models.loading import LoadedModel


class FreshText:
    """Sequences of the sources of ``heal.source``, cut as the calibration's, each given once.

    Nothing is given that the calibration has: no run of `LONGEST_RUN` tokens, no image. Files and
    data sets are read as far as they are asked for; the model writes with other seeds than for the
    calibration.
    """

    def __init__(
        self,
        config: HealConfig,
        cut: CalibrationConfig,
        loaded: LoadedModel,
        calibration: Calibration,
    ) -> None:
        """Reads nothing yet.

        Raises:
            DataError: The model is to write the text and cannot.
        """
        self._loaded = loaded
        self._cut = cut
        self._seed = config.seed
        self._weights = config.sources(cut.source)
        if SELF in self._weights:
            check_writer(loaded, "heal.source")
        parts = (calibration.library, *calibration.search, calibration.heldout)
        self._takes = 0
        self._content: Callable[[Tensor], bytes]
        self._rows: dict[str, Iterator[Tensor]] = {}
        if not loaded.family.task.reads_text:
            self._seen = {image_bytes(image) for part in parts for image in part}
            self._rows = {source: images(source, loaded) for source in self._weights}
            self._content = image_bytes
            return
        form = SequenceForm(cut.length, *surroundings(loaded, cut.bos))
        self._form = form
        known = torch.cat([form.text(part) for part in parts])
        self._seen = {text.numpy().tobytes() for text in known}
        self._content = lambda row: form.text(row[None])[0].numpy().tobytes()
        runs = seen_in(known, LONGEST_RUN)
        assert loaded.tokenizer is not None
        for source in self._weights:
            if source != SELF:
                streams = token_streams(source, loaded.tokenizer, cut.field)
                self._rows[source] = _unseen(streams, runs, form)

    def take(self, count: int, *, some: bool = True) -> Tensor:
        """The next sequences (N, S), or images (N, C, H, W), at most so many.

        Of several sources each gives as many as its weight says, in a random order.

        Raises:
            DataError: A source is missing, cannot be read, is not made for this model, or has
                nothing left although there should be `some`.
        """
        found = [
            self._checked(source, rows)
            for source, share in _shares(count, self._weights).items()
            if (rows := list(self._next(source, share))) or some
        ]
        taken = torch.cat(found) if found else torch.empty(0)
        if len(found) > 1:
            order = np.random.default_rng([self._seed, self._takes]).permutation(len(taken))
            taken = taken[torch.from_numpy(order)]
        self._takes += 1
        return taken

    def take_both(self, training: int, validation: int) -> tuple[Tensor, Tensor]:
        """Sequences to train on, at most so many, and others to choose the best step by.

        They are read, or written, together, which takes less time than one after the other.

        Raises:
            DataError: As `take`, or nothing is left to train on.
        """
        taken = self.take(validation + training)
        if len(taken) <= validation:
            raise DataError(self._too_little(" and ".join(self._weights)))
        return taken[validation:], taken[:validation]

    def _next(self, source: str, count: int) -> Iterator[Tensor]:
        rows = self._rows.get(source)
        return islice(self._distinct(self._written(count) if rows is None else rows), count)

    def _written(self, count: int) -> Iterator[Tensor]:
        """Sequences (S,) that the model writes."""
        seed = (self._cut.seed + self._seed + 1 + self._takes) % 2**32
        writing = Writing(count, self._cut.length, seed)
        return iter(self_written(self._loaded, writing, opening=self._form.before))

    def _distinct(self, rows: Iterator[Tensor]) -> Iterator[Tensor]:
        """Those rows that have not been seen."""
        for row in rows:
            content = self._content(row)
            if content not in self._seen:
                self._seen.add(content)
                yield row

    def _checked(self, source: str, rows: list[Tensor]) -> Tensor:
        if not rows:
            raise DataError(self._too_little(source))
        found = torch.stack(rows)
        if self._loaded.family.task.reads_text:
            check_vocabulary(source, found, self._loaded)
            check_padding(source, found, self._loaded)
        return found

    @staticmethod
    def _too_little(source: str) -> str:
        return (
            f"{source} has nothing left for healing that neither library, search nor held-out "
            "part have: name a heal.source with more text, or lower heal.validation_sequences "
            "or the sequences of the calibration"
        )


def repetition(wanted: int, found: int, config: HealConfig, usual: str) -> str:
    """A word on text that is repeated; empty where every step has its own."""
    if wanted <= found:
        return ""
    return (
        f"healing repeats its text {wanted / found:.1f} times: {wanted:,} sequences to train on "
        f"are asked for, and {found:,} are left of {' and '.join(config.sources(usual))}: name "
        "more by heal.source"
    )


def _shares(count: int, weights: Mapping[str, float]) -> dict[str, int]:
    """A number shared out by weights, at least one for each; rounded where sums are crossed."""
    total, sums = sum(weights.values()), np.cumsum(list(weights.values()))
    ends = [0, *(round(count * float(end) / total) for end in sums)]
    return {
        source: max(1, after - before)
        for source, before, after in zip(weights, ends, ends[1:], strict=False)
    }


def _unseen(streams: Iterator[Tensor], seen: Seen, form: SequenceForm) -> Iterator[Tensor]:
    """Sequences (S,) of what streams have in no run that was seen."""
    for stream in streams:
        for stretch in seen.apart(form.body(stream)):
            yield from form.cut(stretch)
