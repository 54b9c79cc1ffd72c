"""Which rows and columns belong to heads and channels, against positions counted by hand."""

from __future__ import annotations

import pytest
import torch

from evocompress.core.types import DENSE, DROP, Level
from evocompress.core.widths import Widths, axis_lengths, dense_widths
from evocompress.models.families.coupling import Kept, first_items, index_of
from evocompress.testing.decoders import SMOLLM2_135M

LENGTHS = {"query": 6, "key": 3, "value": 3, "channel": 5}
HEADS = Kept(groups=torch.tensor([0, 2]), items=torch.tensor([1, 4]))
CHANNELS = Kept(groups=torch.tensor([0]), items=torch.tensor([0, 3]))


@pytest.mark.parametrize(
    ("axes", "kept", "expected"),
    [
        (("query",), HEADS, [2, 3, 8, 9]),
        (("key",), HEADS, [0, 1, 4, 5]),
        (("value",), HEADS, [0, 1, 4, 5]),
        (("query", "key", "value"), HEADS, [2, 3, 8, 9, 12, 13, 16, 17, 18, 19, 22, 23]),
        (("channel",), CHANNELS, [0, 3]),
        (("channel", "channel"), CHANNELS, [0, 3, 5, 8]),
    ],
)
def test_positions_of_what_stays(axes, kept, expected):
    size = 1 if kept is CHANNELS else 2
    index = index_of(axes, kept, LENGTHS, size * sum(LENGTHS[axis] for axis in axes))
    assert index is not None and index.dtype == torch.int64
    assert index.tolist() == expected


def test_the_residual_stream_stays_whole():
    assert index_of((), HEADS, LENGTHS, 12) is None


def test_lengths_are_those_of_the_architecture():
    lengths = axis_lengths(SMOLLM2_135M.architecture(), block=7)
    heads = {"query": 9, "key": 3, "value": 3, "grouped": 15}
    assert lengths == heads | {"channel": 1536, "inner": 1536}


def test_widths_at_a_level():
    dense = Widths(heads=9, kv_heads=3, head_dim=64, channels=1536)
    assert dense.at(Level(kv_groups=2, group_heads=3)) == Widths(6, 2, 64, 1536)
    assert dense.at(Level(channels=512, bias=True)) == Widths(9, 3, 64, 512)
    assert all(dense.at(level) == dense for level in (DENSE, DROP, Level(merge=1)))


@pytest.mark.parametrize(
    ("kind", "level", "groups", "items"),
    [
        ("attention", Level(kv_groups=2, group_heads=2), [0, 1], [0, 1, 3, 4]),
        ("attention", Level(kv_groups=3, group_heads=1), [0, 1, 2], [0, 3, 6]),
        ("mlp", Level(channels=3), [0], [0, 1, 2]),
    ],
)
def test_first_items(kind, level, groups, items):
    wide = dense_widths(SMOLLM2_135M.architecture(), block=7)
    kept = first_items(kind, wide.at(level), wide)
    assert kept.groups.tolist() == groups and kept.items.tolist() == items
    assert {kept.groups.dtype, kept.items.dtype} == {torch.int64}
