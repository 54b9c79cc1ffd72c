from io import StringIO
from pathlib import Path

import pytest
from fabricate import evaluation, write_json
from rich.console import Console

from evocompress.core.errors import RunError
from evocompress.report import table


def printed(folder: Path) -> list[str]:
    """As a log file gets it: no colours, 100 columns."""
    console = Console(width=100, no_color=True, record=True, file=StringIO())
    console.print(table(folder))
    return console.export_text().splitlines()


def line(lines: list[str], start: str) -> list[str]:
    return next(line for line in lines if line.strip().startswith(start)).split()


def test_table_fits_and_has_the_values(finished: Path) -> None:
    lines = printed(finished)
    assert max(map(len, lines)) <= 100
    assert "…" not in "".join(lines), "nothing is cut"
    assert line(lines, "dense") == ["dense", "uniform", "searched", "healed"]
    assert line(lines, "Held-out KL")[-4:] == ["0.0000", "0.4587", "0.3485", "0.2111"]
    assert line(lines, "Perplexity")[-4:] == ["4.31", "6.84", "6.02", "5.27"]
    assert "text that the dense model wrote itself" in " ".join(lines)


def test_quantities_that_no_row_has_are_left_out(tmp_path: Path) -> None:
    data = evaluation()
    for row in data["rows"]:
        row["prefill_ms"] = row["decode_ms_per_token"] = None
    data["rows"][3]["kl_top256"] = None
    write_json(tmp_path / "evaluation.json", data)
    lines = printed(tmp_path)
    assert not any("Prefill" in line or "Decode" in line for line in lines)
    assert line(lines, "KL, top 256")[-2:] == ["0.3415", "–"]


def test_what_a_model_lacks_is_a_dash(tmp_path: Path) -> None:
    data = evaluation()
    for key in data["rows"][3].keys() - {"name"}:
        data["rows"][3][key] = None
    write_json(tmp_path / "evaluation.json", data)
    quantities = ("Parameters", "Weights", "Held-out KL", "KL, top 256", "Perplexity", "Decode")
    lines = printed(tmp_path)
    assert [line(lines, quantity)[-1] for quantity in quantities] == ["–"] * len(quantities)


def test_names_are_not_read_as_markup(tmp_path: Path) -> None:
    data = evaluation()
    data["rows"][3]["name"] = "[red]x[/red]"
    write_json(tmp_path / "evaluation.json", data)
    assert "[red]x[/red]" in "".join(printed(tmp_path))


def test_a_run_without_evaluation_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no evaluation\.json"):
        table(tmp_path)


def test_promised_latencies_of_four_models_fit(tmp_path: Path) -> None:
    data = evaluation()
    for index, row in enumerate(data["rows"]):
        row["predicted"] = {"latency": 0.8123 / (index + 1), "decode_latency": 0.0413}
        row["prefill_ms"]["median"] = 1812.0 / (index + 1)
    write_json(tmp_path / "evaluation.json", data)
    lines = printed(tmp_path)
    assert max(map(len, lines)) <= 100
    assert sum("predicted" in line for line in lines) >= 4
