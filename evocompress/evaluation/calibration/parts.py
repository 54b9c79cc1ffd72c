"""The parts of the calibration text: what the search sees, and held-out text it never saw.

Two sources are compared by their tokens. Where they are one text, the held-out part follows
behind the other; where they are not, what they have in common is passed over.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import torch
from torch import Tensor

from evocompress.core.config import CalibrationConfig
from evocompress.core.errors import DataError
from evocompress.evaluation.calibration.overlap import LONGEST_RUN, SHORTER_RUN, Seen, seen_in
from evocompress.evaluation.calibration.self_text import Writing, self_written
from evocompress.evaluation.calibration.sources import SELF, token_streams
from evocompress.evaluation.calibration.special import check_padding, check_vocabulary, surroundings
from evocompress.models.loading import LoadedModel


@dataclass(frozen=True, eq=False)
class TextParts:
    """Sequences of two parts that have no text in common.

    Attributes:
        searched: For library and search (N, S).
        heldout: For the final evaluation (M, S).
        left_out: Tokens of the held-out source that were passed over, as the search sees them.
        repeated: Tokens of the held-out part that are all the same in runs of `SHORTER_RUN` that
            the search sees: of a text that repeats itself, of quotations, of rows of tables.
    """

    searched: Tensor
    heldout: Tensor
    left_out: int = 0
    repeated: int = 0


@dataclass(frozen=True, eq=False)
class SequenceForm:
    """How sequences are cut: their length with the special tokens before and after the text.

    Attributes:
        length: Tokens of a sequence.
        before: Special tokens at its beginning (n,).
        after: Special tokens at its end (m,).
    """

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

    def body(self, stream: Tensor) -> Tensor:
        """A stream (N,) without the special tokens that it has at its beginning already."""
        size = len(self.before)
        return stream[size:] if size and torch.equal(stream[:size], self.before) else stream

    def cut(self, stream: Tensor) -> Iterator[Tensor]:
        """Sequences (S,) one after the other; what is left at the stream's end is dropped."""
        text = self.body(stream)
        for part in text[: len(text) // self.inner * self.inner].view(-1, self.inner):
            yield torch.cat([self.before, part, self.after])


def text_parts(config: CalibrationConfig, loaded: LoadedModel, cache: Path | None) -> TextParts:
    """Reads both parts, with a folder for text that the model wrote.

    Raises:
        DataError: A source is missing, unreadable, too short, has nothing that the search does
            not see, or is not made for this model.
    """
    assert loaded.tokenizer is not None
    form = SequenceForm(config.length, *surroundings(loaded, config.bos))
    source, other = config.source, config.heldout_source or config.source
    count, more = config.library_sequences + config.search_sequences, config.heldout_sequences
    if SELF in (source, other):
        own = count * (source == SELF) + more * (other == SELF)
        written = self_written(
            loaded, Writing(own, config.length, config.seed), cache, opening=form.before
        )
        if source == other:
            return _apart(written[:count], written[count:], form)
    if source == SELF:
        read: list[Tensor] = []
        searched, streams = written, iter(read)
    else:
        streams = token_streams(source, loaded.tokenizer, config.field)
        searched, read = _searched(streams, form, config, loaded)
    if other == SELF:
        return _apart(searched, written, form)
    # What one source was read for the first part is kept for the other.
    again = (
        chain(read, streams)
        if source == other
        else token_streams(other, loaded.tokenizer, config.field)
    )
    return _with_heldout(searched, read, again, form, config, loaded)


def _apart(searched: Tensor, heldout: Tensor, form: SequenceForm) -> TextParts:
    """Parts, one of them written by the model; refuses them if a sequence is in both."""
    seen = seen_in(form.text(searched), SHORTER_RUN)
    text = form.text(heldout)
    common = sum(map(seen.has, text))
    if common:
        raise DataError(
            f"the model wrote {common} of the {len(heldout)} held-out sequences like ones "
            "that the search sees: raise calibration.length, or name a heldout_source"
        )
    return TextParts(searched, heldout, repeated=seen.count(text))


def _searched(
    streams: Iterable[Tensor], form: SequenceForm, config: CalibrationConfig, loaded: LoadedModel
) -> tuple[Tensor, list[Tensor]]:
    """The first sequences (N, S) of a source, and the streams that were read for them."""
    counts = [config.library_sequences, config.search_sequences]
    read: list[Tensor] = []
    found: list[Tensor] = []
    for stream in streams:
        read.append(stream)
        found += form.cut(stream)
        if len(found) >= sum(counts):
            return _checked(config.source, found[: sum(counts)], loaded), read
    if config.heldout_source in (None, config.source):
        counts.append(config.heldout_sequences)
    raise DataError(_too_few(len(found), counts, config))


def _with_heldout(
    searched: Tensor,
    read: list[Tensor],
    streams: Iterator[Tensor],
    form: SequenceForm,
    config: CalibrationConfig,
    loaded: LoadedModel,
) -> TextParts:
    """The first sequences of the streams that are none of those searched on, nor overlap them.

    Of another text, sequences are passed over that consist for the most part of shorter runs that
    were searched on, such as the lines of the same text joined otherwise.
    """
    first = list(islice(streams, len(read)))
    same = bool(read) and len(first) == len(read) and all(map(torch.equal, first, read))
    streams = chain(first, streams)
    seen, shorter = (seen_in(form.text(searched), run) for run in (LONGEST_RUN, SHORTER_RUN))
    rest = _behind(streams, len(searched), form) if same else _beside(streams, seen)
    found: list[Tensor] = []
    known = passed = 0
    for stretches, tokens in rest:
        passed += tokens
        for row in (row for stretch in stretches for row in form.cut(stretch)):
            text = form.text(row[None])
            if seen.has(text[0]) or (not same and 2 * shorter.count(text) > form.inner):
                known += 1
            else:
                found.append(row)
            if len(found) == config.heldout_sequences:
                heldout = _checked(config.heldout_source or config.source, found, loaded)
                return TextParts(
                    searched,
                    heldout,
                    left_out=passed + known * form.inner,
                    repeated=shorter.count(form.text(heldout)),
                )
    total = len(found) + known + (len(searched) if same else passed // form.inner)
    raise DataError(_too_little(len(found), total, same, config))


def _behind(
    streams: Iterable[Tensor], used: int, form: SequenceForm
) -> Iterator[tuple[list[Tensor], int]]:
    """What follows the first `used` sequences of streams, and how many tokens are passed over."""
    for stream in streams:
        text = form.body(stream)
        passed = min(used, len(text) // form.inner)
        used -= passed
        yield [text[passed * form.inner :]], passed * form.inner


def _beside(streams: Iterable[Tensor], seen: Seen) -> Iterator[tuple[list[Tensor], int]]:
    """What streams have in no common run, and how many tokens are passed over."""
    for stream in streams:
        stretches = seen.apart(stream)
        yield stretches, len(stream) - sum(map(len, stretches))


def _too_little(found: int, total: int, same: bool, config: CalibrationConfig) -> str:
    """What to say of a held-out source with `found` new sequences, fewer than are needed."""
    source, other = config.source, config.heldout_source or config.source
    counts = [config.library_sequences, config.search_sequences, config.heldout_sequences]
    if same and total < sum(counts):
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
        f"({' + '.join(map(str, counts))}) are needed: lower calibration.library_sequences, "
        f"search_sequences{' or heldout_sequences' if len(counts) > 2 else ''} or "
        "calibration.length"
    )


def _checked(source: str, found: list[Tensor], loaded: LoadedModel) -> Tensor:
    """Sequences as one tensor (N, S), whose tokens the model has."""
    sequences = torch.stack(found)
    check_vocabulary(source, sequences, loaded)
    check_padding(source, sequences, loaded)
    return sequences
