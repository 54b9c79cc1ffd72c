import pytest

from evocompress.report.columns import Cell, columns, number, percent, scale
from evocompress.report.data import RatioRecord, Row, TimingRecord


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [(1234567.0, 0, "1,234,567"), (0.12345, 4, "0.1235"), (None, 2, "–"), (float("nan"), 2, "–")],
)
def test_number(value: float | None, decimals: int, text: str) -> None:
    assert number(value, decimals) == text


def test_percent_shows_a_decimal_only_where_there_is_one() -> None:
    assert (percent(0.5), percent(0.6053), percent(1.0)) == ("50%", "60.5%", "100%")


def test_scale_keeps_the_largest_above_one() -> None:
    assert scale([3e6, 2.5e9]) == (1e9, "G")
    assert scale([12.0]) == (1.0, "")
    assert scale([]) == (1.0, "")


def test_as_predicted_is_said_only_of_equal_numbers() -> None:
    rows = [
        Row(name="dense", params=2_000_000),
        Row(name="searched", params=1_000_000, predicted={"params": 1_000_000}),
        Row(name="healed", params=1_000_000, predicted={"params": 1_000_100}),
    ]
    (column,) = columns(rows)
    assert (column.title, column.unit) == ("Parameters", "M")
    assert column.cells[0] == Cell("2.00")
    assert column.cells[1] == Cell("1.00", ("50% of dense", "as predicted"))
    assert column.cells[2].notes[1] == "predicted 1.00 (+0.01%)"


def test_latency_has_its_share_and_the_promised_one() -> None:
    rows = [
        Row(name="dense", prefill_ms=timing(800.0), predicted={"latency": 0.82}),
        Row(
            name="searched",
            prefill_ms=timing(568.0),
            prefill_ratio=RatioRecord(mean=0.71, low=0.7, high=0.7201, turns=9),
            predicted={"latency": 0.574},
        ),
        Row(
            name="healed",
            prefill_ms=timing(560.0),
            prefill_ratio=RatioRecord(mean=0.9, low=0.7, high=1.1, turns=3),
        ),
        Row(name="other", predicted={"latency": 0.5}),
    ]
    (column,) = columns(rows)
    assert (column.title, column.unit) == ("Prefill", "ms")
    dense, searched, healed, other = column.cells
    assert dense == Cell("800.0", ("792.0 – 808.0", "predicted 820.0"))
    assert searched.notes[1:] == ("71% of dense", "70% – 72%", "predicted 70%", "predicted 574.0")
    assert healed.notes[1:] == ("90% of dense", "70% – 110%", "not told apart")
    assert other == Cell(), "nothing was measured"


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [
        (0.0, 4, "0.0000"),
        (0.00004, 4, "4.0e-05"),
        (0.00042, 4, "0.00042"),
        (-0.00042, 4, "-0.00042"),
        (0.0042, 4, "0.0042"),
        (0.04, 1, "0.040"),
        (12.3456, 2, "12.35"),
        (3.0e-9, 5, "3.0e-09"),
        (0.3, 0, "0"),
    ],
)
def test_what_is_small_is_not_printed_as_nothing(value: float, decimals: int, text: str) -> None:
    assert number(value, decimals) == text


def test_small_shares_are_not_nothing() -> None:
    assert [percent(share) for share in (0.0, 0.0004, 0.004, 0.5)] == ["0%", "0.04%", "0.4%", "50%"]


def test_small_values_are_seen_in_every_column() -> None:
    row = Row(name="searched", kl=2e-6, kl_sd=1e-6, kl_top256=1e-6, distance=1e-7, spearman=1e-5)
    texts = [
        text
        for column in columns([row])
        for cell in column.cells
        for text in (cell.text, *cell.notes)
    ]
    assert texts == ["2.0e-06", "± 1.0e-06 sd", "1.0e-06", "1.0e-07", "1.0e-05"]


def test_of_an_evaluation_without_intervals_no_share_is_shown() -> None:
    rows = [
        Row(name="dense", prefill_ms=timing(800.0)),
        Row(name="searched", prefill_ms=timing(3352.0)),
    ]
    (column,) = columns(rows)
    assert column.cells[1] == Cell("3,352.0", ("3,318.5 – 3,385.5",))


def timing(median: float) -> TimingRecord:
    return TimingRecord(median=median, low=0.99 * median, high=1.01 * median)
