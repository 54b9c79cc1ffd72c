"""The parts of the calibration text: what the search sees, and held-out text it never saw."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, tee
from pathlib import Path

import torch
from torch import Tensor

from evocompress.config import CalibrationConfig
from evocompress.errors import DataError
from evocompress.models import LoadedModel
from evocompress.proxies.overlap import seen_in
from evocompress.proxies.self_text import Writing, self_written
from evocompress.proxies.sources import SELF, token_streams
from evocompress.proxies.special import check_vocabulary, surroundings


@dataclass(frozen=True, eq=False)
class Parts:
    """Sequences of two parts that have no text in common.

    Attributes:
        searched: For library and search (N, S).
        heldout: For the final evaluation (M, S).
        left_out: Tokens of the held-out source that were passed over, as the search sees them.
    """

    searched: Tensor
    heldout: Tensor
    left_out: int = 0


@dataclass(frozen=True, eq=False)
class _Form:
    """How sequences are cut: their length with the special tokens before and after the text."""

    length: int
    before: Tensor
    after: Tensor

    @property
    def inner(self) -> int:
        """Tokens of the text."""
        return self.length - len(self.before) - len(self.after)

    def text(self, sequences: Tensor) -> Tensor:
        """Sequences (N, S) without their special tokens."""
        return sequences[:, len(self.before) :][:, : self.inner]

    def cut(self, stream: Tensor) -> Iterator[Tensor]:
        """Sequences (S,) one after the other; what is left at the stream's end is dropped.

        A stream that has the special tokens at its beginning is not given them twice.
        """
        size = len(self.before)
        if size and torch.equal(stream[:size], self.before):
            stream = stream[size:]
        for part in stream[: len(stream) // self.inner * self.inner].view(-1, self.inner):
            yield torch.cat([self.before, part, self.after])


def text_parts(config: CalibrationConfig, loaded: LoadedModel, cache: Path | None) -> Parts:
    """Reads both parts.

    Args:
        config: Sources and sizes.
        loaded: Its tokenizer turns text into tokens, and with ``self`` it writes the text.
        cache: Folder for text that the model wrote.

    Raises:
        DataError: A source is missing, unreadable, too short, has nothing that the search does
            not see, or is not made for this model.
    """
    assert loaded.tokenizer is not None
    form = _Form(config.length, *surroundings(loaded, config.bos))
    source, other = config.source, config.heldout_source or config.source
    count, more = config.library_sequences + config.search_sequences, config.heldout_sequences
    if SELF in (source, other):
        own = count * (source == SELF) + more * (other == SELF)
        written = self_written(
            loaded, Writing(own, config.length, config.seed), cache, opening=form.before
        )
        if source == other:
            return _apart(Parts(written[:count], written[count:]))
    if source == SELF:
        searched = written
    else:
        streams = token_streams(source, loaded.tokenizer)
        # What one source was read for the first part is kept for the other.
        streams, again = tee(streams)
        searched = _searched(streams, form, config, loaded)
    if other == SELF:
        return _apart(Parts(searched, written))
    if source != other:
        again = token_streams(other, loaded.tokenizer)
    return _with_heldout(searched, again, form, config, loaded)


def _apart(parts: Parts) -> Parts:
    """Refuses parts of which the model wrote one, if a sequence is in both."""
    seen = {row.numpy().tobytes() for row in parts.searched}
    common = sum(row.numpy().tobytes() in seen for row in parts.heldout)
    if common:
        raise DataError(
            f"the model wrote {common} of the {len(parts.heldout)} held-out sequences like ones "
            "that the search sees: raise calibration.length, or name a heldout_source"
        )
    return parts


def _searched(
    streams: Iterable[Tensor], form: _Form, config: CalibrationConfig, loaded: LoadedModel
) -> Tensor:
    """The first sequences (N, S) of a source, for library and search."""
    counts = [config.library_sequences, config.search_sequences]
    found = list(islice((row for stream in streams for row in form.cut(stream)), sum(counts)))
    if len(found) < sum(counts):
        if config.heldout_source in (None, config.source):
            counts.append(config.heldout_sequences)
        raise DataError(_too_few(len(found), counts, config))
    return _checked(config.source, found, loaded)


def _with_heldout(
    searched: Tensor,
    streams: Iterable[Tensor],
    form: _Form,
    config: CalibrationConfig,
    loaded: LoadedModel,
) -> Parts:
    """The first sequences of the streams that have nothing in common with those searched on."""
    seen = seen_in(form.text(searched))
    found: list[Tensor] = []
    total = left_out = 0
    for stream in streams:
        total += len(list(form.cut(stream)))
        stretches = seen.apart(stream)
        left_out += len(stream) - sum(map(len, stretches))
        for row in (row for stretch in stretches for row in form.cut(stretch)):
            if len(found) == config.heldout_sequences:
                break
            if seen.has(form.text(row[None])[0]):
                left_out += form.inner
            else:
                found.append(row)
        if len(found) == config.heldout_sequences:
            break
    else:
        raise DataError(_too_little(len(found), total, config))
    other = config.heldout_source or config.source
    heldout = _checked(other, found, loaded)
    return Parts(searched, heldout, left_out=left_out)


def _too_little(found: int, total: int, config: CalibrationConfig) -> str:
    """What to say of a held-out source of so many sequences, of which `found` are new."""
    source, other = config.source, config.heldout_source or config.source
    counts = [config.library_sequences, config.search_sequences, config.heldout_sequences]
    if source == other and total < sum(counts):
        return _too_few(total, counts, config)
    text = f"{other} has only {total} sequences of {config.length} tokens"
    remedy = "lower calibration.heldout_sequences or calibration.length"
    if found < total:
        text = (
            f"{other} has {total} sequences of {config.length} tokens, but only {found} that have "
            f"nothing in common with what the search sees of {source}"
        )
        remedy += ", or name another heldout_source"
    return f"{text}, but {config.heldout_sequences} are needed: {remedy}"


def _too_few(found: int, counts: list[int], config: CalibrationConfig) -> str:
    """What to say of a source with too few sequences for the parts that are cut from it."""
    return (
        f"{config.source} has only {found} sequences of {config.length} tokens, but {sum(counts)} "
        f"({' + '.join(map(str, counts))}) are needed: lower calibration.library_sequences or "
        "search_sequences or calibration.length"
    )


def _checked(source: str, found: list[Tensor], loaded: LoadedModel) -> Tensor:
    """Sequences as one tensor (N, S), whose tokens the model has."""
    sequences = torch.stack(found)
    check_vocabulary(source, sequences, loaded)
    return sequences
