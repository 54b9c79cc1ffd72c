"""What types take, against tensors that hold them."""

import pytest
import torch

from evocompress.core.storage import GROUPS, STORAGE


def packed_bytes(count, bits):
    """Of so many integers in words of 32 bits."""
    return (count * bits + 31) // 32 * 4


GROUPED = [k for k in STORAGE.values() if k.lane == GROUPS and not k.rounds_inputs]


@pytest.mark.parametrize("kind", GROUPED, ids=str)
def test_groups_take_what_their_tensors_take(kind):
    rows, columns = 48, 384
    expected = rows * packed_bytes(columns, kind.bits)
    expected += torch.empty(rows, columns // kind.block, dtype=torch.float16).nbytes
    if kind.name.endswith("z"):
        expected += columns // kind.block * packed_bytes(rows, kind.bits)
    assert kind.bytes(rows, columns) == expected


@pytest.mark.parametrize("columns", [384, 63])
def test_a_byte_each_and_a_scale_a_row(columns):
    integers = torch.empty(48, columns, dtype=torch.int8).nbytes
    scales = torch.empty(48, 1, dtype=torch.bfloat16).nbytes
    assert STORAGE["w8a8"].bytes(48, columns) == integers + scales
    assert STORAGE["w8a8"].fits(columns) and STORAGE["w8a8"].bits_per_weight == 8


@pytest.mark.parametrize(
    ("name", "bits"),
    [("q4_0", 4.5), ("q4_1", 5), ("q8_0", 8.5), ("q4_k", 4.5), ("q6_k", 6.5625), ("f16", 16)]
    + [("w4g64", 4.25), ("w4g64z", 4.3125), ("w3g64", 3.25), ("w8g128", 8.125)],
)
def test_bits_per_weight_count_scales(name, bits):
    assert STORAGE[name].bits_per_weight == pytest.approx(bits, abs=1e-9)


def test_rows_must_have_whole_blocks():
    assert STORAGE["q4_0"].fits(96) and not STORAGE["q4_0"].fits(100)
    assert STORAGE["q4_k"].fits(512) and not STORAGE["q4_k"].fits(576)
    assert STORAGE["f16"].fits(1)
