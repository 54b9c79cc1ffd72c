"""Text for healing that neither library, nor search, nor held-out part have.

Fresh text teaches more than what was compressed on (RS2, 2305.18424): sources are read on until
there is enough, and only then is anything repeated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from evocompress.core.config import CalibrationConfig, HealConfig
from evocompress.core.errors import DataError
from evocompress.evaluation.calibration.calibration import Calibration, check_writer
from evocompress.evaluation.calibration.images import image_bytes, new_images
from evocompress.evaluation.calibration.overlap import LONGEST_RUN, Seen, seen_in
from evocompress.evaluation.calibration.parts import SequenceForm
from evocompress.evaluation.calibration.self_text import Writing, self_written
from evocompress.evaluation.calibration.sources import SELF, token_streams
from evocompress.evaluation.calibration.special import check_padding, check_vocabulary, surroundings
from evocompress.models.loading import LoadedModel


@dataclass(frozen=True, eq=False)
class HealingText:
    """Sequences to train on and to choose the best step by; no sequence is in both.

    Attributes:
        train: (N, S) token ids, or images (N, C, H, W).
        validation: (M, S), likewise.
        wanted: How many sequences training asks for; where `train` has fewer, they are repeated.
        sources: How many of both come from each source.
    """

    train: Tensor
    validation: Tensor
    wanted: int
    sources: dict[str, int]

    @property
    def note(self) -> str:
        """A word on repeated text; empty where every step has its own."""
        repeats = self.wanted / len(self.train)
        if repeats <= 1:
            return ""
        found = " and ".join(f"{name} ({count:,})" for name, count in self.sources.items())
        return (
            f"healing repeats its text {repeats:.1f} times: {self.wanted:,} sequences to train on "
            f"are asked for, and {len(self.train):,} are left of {found}; name more by heal.source"
        )


def healing_text(
    config: HealConfig,
    cut: CalibrationConfig,
    loaded: LoadedModel,
    calibration: Calibration,
) -> HealingText:
    """Reads the text of a healing, cut as the calibration's.

    Of several sources each gives as many sequences as its weight says, in a random order. What the
    model writes itself it writes with another seed than for the calibration.

    Raises:
        DataError: A source is missing or not made for this model, or has nothing that the
            calibration has not.
    """
    wanted = config.at(calibration.length).steps * config.accumulate * config.batch
    weights = config.sources(cut.source)
    kept = _shares(config.validation_sequences, weights)
    trained = _shares(wanted, weights)
    found = {
        source: _fresh(source, kept[source] + trained[source], config, cut, loaded, calibration)
        for source in weights
    }
    for source, sequences in found.items():
        if len(sequences) <= kept[source]:
            raise DataError(_nothing(source, len(sequences), kept[source]))
    train = torch.cat([rows[kept[source] :] for source, rows in found.items()])
    if len(found) > 1:
        order = np.random.default_rng(config.seed).permutation(len(train))
        train = train[torch.from_numpy(order)]
    return HealingText(
        train=train,
        validation=torch.cat([rows[: kept[source]] for source, rows in found.items()]),
        wanted=wanted,
        sources={source: len(rows) for source, rows in found.items()},
    )


def _nothing(source: str, found: int, kept: int) -> str:
    return (
        f"{source} has {found} sequences that neither library, search nor held-out part have, and "
        f"healing keeps {kept} to choose the best step by: name a heal.source with more text, or "
        "lower heal.validation_sequences or the sequences of the calibration"
    )


def _shares(count: int, weights: dict[str, float]) -> dict[str, int]:
    """A number shared out by weights, at least one for each; rounded where sums are crossed."""
    total, sums = sum(weights.values()), np.cumsum(list(weights.values()))
    ends = [0, *(round(count * float(end) / total) for end in sums)]
    return {
        source: max(1, after - before)
        for source, before, after in zip(weights, ends, ends[1:], strict=False)
    }


def _fresh(
    source: str,
    count: int,
    config: HealConfig,
    cut: CalibrationConfig,
    loaded: LoadedModel,
    calibration: Calibration,
) -> Tensor:
    """At most so many sequences (N, S) of a source that the calibration has not."""
    parts = (calibration.library, *calibration.search, calibration.heldout)
    if not loaded.family.task.reads_text:
        seen = frozenset(image_bytes(image) for part in parts for image in part)
        return new_images(source, count, loaded, seen)
    form = SequenceForm(cut.length, *surroundings(loaded, cut.bos))
    known = torch.cat([form.text(part) for part in parts])
    if source == SELF:
        check_writer(loaded, "heal.source")
        seed = (cut.seed + config.seed + 1) % 2**32
        rows = iter(self_written(loaded, Writing(count, cut.length, seed), opening=form.before))
    else:
        assert loaded.tokenizer is not None
        streams = token_streams(source, loaded.tokenizer, cut.field)
        rows = _unseen(streams, seen_in(known, LONGEST_RUN), form)
    sequences = list(islice(_distinct(rows, known, form), count))
    if not sequences:
        return known[:0]
    found = torch.stack(sequences)
    check_vocabulary(source, found, loaded)
    check_padding(source, found, loaded)
    return found


def _distinct(rows: Iterator[Tensor], known: Tensor, form: SequenceForm) -> Iterator[Tensor]:
    """Those of the sequences (S,) that are none of the known texts (N, S'), each once."""
    seen = {text.numpy().tobytes() for text in known}
    for row in rows:
        text = form.text(row[None])[0].numpy().tobytes()
        if text not in seen:
            seen.add(text)
            yield row


def _unseen(streams: Iterator[Tensor], seen: Seen, form: SequenceForm) -> Iterator[Tensor]:
    """Sequences (S,) of what streams have in no run that was seen."""
    for stream in streams:
        for stretch in seen.apart(form.body(stream)):
            yield from form.cut(stretch)
