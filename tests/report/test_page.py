import json
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fabricate import config, evaluation, run_folder, write_json

from evocompress.core.checked_lines import sealed
from evocompress.core.config import ProxyConfig, SpaceConfig, SparsitySpace
from evocompress.core.config_file import dump_config
from evocompress.core.errors import RunError
from evocompress.evaluation.proxies import PROXIES
from evocompress.report import write_report
from evocompress.report.data import read_run
from evocompress.testing.decoders import SMOLLM2_135M

SECTIONS = ["Comparison", "Search", "Allocation", "Front", "Healing", "Reading the numbers"]
LOADING = {"src", "srcset", "href", "data", "poster", "action"}


class Page(HTMLParser):
    """Collects headings, table cells and every attribute by which a page could load something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.rows: list[list[str]] = []
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.scripts = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [f"{tag} {name}={value}" for name, value in attrs if name in LOADING]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.scripts += tag == "script"

    def handle_endtag(self, tag: str) -> None:
        while self.tags.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "h2" in self.tags:
            self.headings.append(data)
        if "td" in self.tags or "th" in self.tags:
            self.rows[-1][-1] += data + " "


def page_of(folder: Path) -> Page:
    return Page(write_report(folder).read_text())


def figure_data(html: str, name: str) -> list[dict]:
    """The traces that the page hands to plotly for a figure."""
    return figure_parts(html, name)[0]


def figure_layout(html: str, name: str) -> dict:
    """The layout that the page hands to plotly for a figure."""
    return figure_parts(html, name)[1]


def figure_parts(html: str, name: str) -> tuple[list[dict], dict]:
    start = re.search(rf'Plotly\.newPlot\(\s*"figure-{name}",\s*', html)
    assert start is not None
    decoder, rest = json.JSONDecoder(), html[start.end() :]
    traces, end = decoder.raw_decode(rest)
    return traces, decoder.raw_decode(rest[end:].lstrip(", \n"))[0]


def without_plotly(html: str) -> str:
    """The page without the embedded library, which names addresses in its source."""
    return re.sub(r"<script>\s*/\*\*\s*\* plotly\.js.*?</script>", "", html, flags=re.DOTALL)


def test_page_loads_nothing_from_elsewhere(finished: Path) -> None:
    html = write_report(finished).read_text()
    page = Page(html)
    assert page.loads == []
    assert "content=\"default-src 'none';" in html, "the browser is told to load nothing"
    own = without_plotly(html)
    assert len(own) < len(html) / 5, "the library is in the page"
    assert not re.search(r"url\(|@import|import\(|fetch\(", own)
    assert set(re.findall(r"https?://[^\"'\s<]+", own)) <= {"https://plot.ly"}


def test_library_is_embedded_once(finished: Path) -> None:
    html = write_report(finished).read_text()
    assert len(re.findall(r"\* plotly\.js v", html)) == 1


def test_all_sections_of_a_finished_run(finished: Path) -> None:
    assert page_of(finished).headings == SECTIONS


@pytest.mark.parametrize(
    ("file", "gone"),
    [
        ("evaluation.json", "Comparison"),
        ("units.json", "Allocation"),
        ("winner.json", "Allocation"),
        ("front.json", "Front"),
        ("heal/heal.jsonl", "Healing"),
    ],
)
def test_a_missing_file_leaves_its_section_out(tmp_path: Path, file: str, gone: str) -> None:
    folder = run_folder(tmp_path / "run")
    (folder / file).unlink()
    assert page_of(folder).headings == [title for title in SECTIONS if title != gone]


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    for path in folder.rglob("*"):
        if path.is_file() and path.name not in ("config.yaml", "journal.jsonl"):
            path.unlink()
    (folder / "journal.jsonl").write_text('{"type":"run"}\n{"type":"cand')
    page = page_of(folder)
    assert page.headings == []
    assert "none yet" in (folder / "summary.md").read_text()


@pytest.mark.parametrize("name", ["config.yaml", "journal.jsonl"])
def test_a_folder_that_is_no_run_is_one_clear_line(tmp_path: Path, name: str) -> None:
    folder = run_folder(tmp_path / "run")
    (folder / name).unlink()
    with pytest.raises(RunError, match=f"no {name}") as caught:
        write_report(folder)
    assert "\n" not in str(caught.value)
    assert not (folder / "report.html").exists()


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    data = evaluation()
    data["rows"][1]["kl"] = "much"
    write_json(folder / "evaluation.json", data)
    with pytest.raises(RunError, match=r"evaluation\.json is damaged.*'rows\.1\.kl'"):
        write_report(folder)


@pytest.mark.parametrize(
    ("proxy", "healed", "axis"),
    [
        ("kl", "validation KL", "KL to the dense model, nats"),
        ("embedding", "validation distance", PROXIES["embedding"].meaning),
    ],
)
def test_an_encoder_has_values_of_sequences(
    tmp_path: Path, proxy: str, healed: str, axis: str
) -> None:
    folder = run_folder(tmp_path / "run")
    changed = config("model").model_copy(update={"proxy": ProxyConfig(kind=proxy)})
    (folder / "config.yaml").write_text(dump_config(changed))
    encoder = asdict(replace(SMOLLM2_135M.architecture(), causal=False, tokens=17))
    units = json.loads((folder / "units.json").read_text())
    write_json(folder / "units.json", {"units": units, "architecture": encoder})
    data = evaluation()
    for row in data["rows"]:
        row["decode_ms_per_token"] = None
        row["predicted"] = {"latency": 0.4}
    write_json(folder / "evaluation.json", data)
    html = write_report(folder).read_text()
    for figure in ("search", "front", "healing"):
        assert figure_layout(html, figure)["yaxis"]["title"]["text"] == axis
    assert healed in [trace["name"] for trace in figure_data(html, "healing")]
    text = (folder / "summary.md").read_text()
    for told in (
        "sequences of 17 tokens from",
        "Prefill is 17 tokens at batch 1.",
        "a table of 17 tokens at batch 1; shares",
    ):
        assert told in text
    assert "decode" not in text.lower()


def test_the_token_that_begins_every_sequence_is_named(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    write_report(folder)
    assert "each beginning with" not in (folder / "summary.md").read_text()
    units = json.loads((folder / "units.json").read_text())
    outline = {"units": units, "architecture": asdict(SMOLLM2_135M.architecture())}
    write_json(folder / "units.json", outline | {"opening": "[BOS]"})
    data = evaluation()
    data["heldout"] |= {"opening": "[BOS]", "repeated": 1234}
    write_json(folder / "evaluation.json", data)
    write_report(folder)
    assert "but 1,234 of their" in (folder / "summary.md").read_text()
    told = (folder / "summary.md").read_text().replace("\\", "")
    assert told.count("each beginning with [BOS]") >= 2


@pytest.mark.parametrize("gone", ["units", "architecture"])
def test_incomplete_units_are_one_clear_line(tmp_path: Path, gone: str) -> None:
    folder = run_folder(tmp_path / "run")
    data = {
        "units": json.loads((folder / "units.json").read_text()),
        "architecture": asdict(SMOLLM2_135M.architecture()),
    }
    write_json(folder / "units.json", data)
    assert read_run(folder).architecture == SMOLLM2_135M.architecture()
    write_json(folder / "units.json", {name: data[name] for name in data if name != gone})
    with pytest.raises(RunError, match=rf"units\.json .*'{gone}': .*delete it and") as caught:
        read_run(folder)
    assert "\n" not in str(caught.value)


def test_every_proxy_has_a_name_for_its_value(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    plain = config("tiny")
    for kind in PROXIES.built_in:
        changed = plain.model_copy(update={"proxy": ProxyConfig(kind=kind)})
        (folder / "config.yaml").write_text(dump_config(changed))
        html = write_report(folder).read_text()
        for figure in ("search", "front"):
            assert figure_layout(html, figure)["yaxis"]["title"]["text"] == PROXIES[kind].meaning


def test_table_has_the_values_with_units(finished: Path) -> None:
    header, *rows = zip(*page_of(finished).rows, strict=True)
    titles = [" ".join(cell.split()) for cell in header]
    assert titles[1:5] == ["Parameters M", "Non-zeros M", "FLOPs G", "Weights MB"]
    assert [row[0].strip() for row in rows] == ["dense", "uniform", "searched", "healed"]
    searched = {title: " ".join(c.split()) for title, c in zip(titles, rows[2], strict=True)}
    assert searched["Parameters M"] == "134.52 as predicted"
    assert searched["Non-zeros M"] == "81.42 60.5% of dense as predicted"
    assert searched["FLOPs G"] == "262.00"
    assert searched["Weights MB"] == "269.03 predicted 270.00"
    assert searched["Held-out KL nats/token"] == "0.3485 ± 0.0498 sd"
    assert searched["KL, top 256 nats/token"] == "0.3415"
    assert searched["Perplexity"] == "6.02"
    assert searched["Prefill ms"].endswith("100.3% of dense 99.3% – 101.3% not told apart")
    assert searched["Decode ms/token"] == "41.3 40.1 – 45.0 97% of dense 96% – 98%"


def test_names_are_escaped(tmp_path: Path) -> None:
    attack = "<img src=x onerror=alert(1)></script><script>alert(2)</script>|`*"
    folder = run_folder(tmp_path / "run", source=attack)
    data = evaluation(source=attack)
    data["heldout"]["self_written"] = False
    data["rows"][3]["name"] = attack
    write_json(folder / "evaluation.json", data)
    units = json.loads((folder / "units.json").read_text())
    units[2]["role"] = attack
    units[2]["name"] = attack
    write_json(folder / "units.json", units)
    clean = run_folder(tmp_path / "clean")
    page = page_of(folder)
    assert "img" not in page.tags and page.loads == []
    assert page.scripts == page_of(clean).scripts
    roles = figure_data((folder / "report.html").read_text(), "allocation")[0]["y"]
    assert roles[0].startswith("&lt;img"), "plotly itself reads labels as HTML"
    summary = (folder / "summary.md").read_text()
    assert "<img" not in summary and "\\|\\`\\*" in summary


def test_summary_has_table_facts_and_notes(finished: Path) -> None:
    write_report(finished)
    text = (finished / "summary.md").read_text()
    assert text.startswith("# smollm2-half\n")
    assert "- **Budget**: non-zero parameters ≤ 61% of dense\n" in text
    assert "- **Tokens**: 660,000 of 660,000 requested, 612,000 computed\n" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 6 and len({line.count("|") for line in table}) == 1
    assert "| 0.3485 (± 0.0498 sd) | 0.3415 | 6.02 |" in table[4]
    assert "Failed evaluations, left out: 1 × NaN." in text


def test_a_budget_that_the_space_implied_is_shown_as_a_share(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    plain = config("tiny")
    space = plain.space.model_copy(update={"budget": {}})
    (folder / "config.yaml").write_text(dump_config(plain.model_copy(update={"space": space})))
    winner = json.loads((folder / "winner.json").read_text())
    winner["dense_costs"]["matrix_nonzeros"] = 1_000_000.0
    winner["budget"] = {"matrix_nonzeros": 400_000.0}
    write_json(folder / "winner.json", winner)
    write_report(folder)
    fact = "- **Budget**: non-zero weights of matrices ≤ 40% of dense\n"
    assert fact in (folder / "summary.md").read_text()
    (folder / "winner.json").unlink()
    write_report(folder)
    assert "- **Budget**: none\n" in (folder / "summary.md").read_text(), "not known yet"


def test_what_a_model_lacks_is_a_dash(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    data = evaluation()
    for key in data["rows"][2].keys() - {"name"}:
        data["rows"][2][key] = None
    write_json(folder / "evaluation.json", data)
    header, *rows = zip(*page_of(folder).rows, strict=True)
    assert [cell.strip() for cell in rows[2]] == ["searched"] + ["–"] * (len(header) - 1)
    dashes = " | ".join(["–"] * (len(header) - 1))
    assert f"\n| searched | {dashes} |\n" in (folder / "summary.md").read_text()


def test_the_table_is_as_wide_as_there_are_models(finished: Path) -> None:
    assert {len(row) for row in page_of(finished).rows} == {1 + 4}


@pytest.mark.parametrize(
    ("sparsity", "text"),
    [
        ({"target": 0.5, "pattern": "2:4"}, "2:4 zeros in matrices, 50% (sparsegpt)"),
        ({"target": 0.5, "levels": 0}, "zeros in matrices, 50% (sparsegpt)"),
        ({"target": 0.5, "levels": 4}, "zeros in matrices, 50% ± 4 levels (sparsegpt)"),
    ],
)
def test_only_zeros_that_have_levels_are_said_to(
    tmp_path: Path, sparsity: dict[str, object], text: str
) -> None:
    folder = run_folder(tmp_path / "run")
    space = SpaceConfig(sparsity=SparsitySpace.model_validate(sparsity))
    changed = config("model").model_copy(update={"space": space})
    (folder / "config.yaml").write_text(dump_config(changed))
    write_report(folder)
    assert f"- **May be changed**: {text}\n" in (folder / "summary.md").read_text()


def test_notes_are_honest_about_the_text_and_the_zeros(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    write_report(folder)
    text = (folder / "summary.md").read_text()
    assert "16 sequences of 512 tokens from text that the dense model wrote itself" in text
    assert "only compares the rows of this table" in text
    assert "Unstructured zeros give no speed-up" in text
    assert "timed in turns (12 to 12)" in text and "not told apart" in text
    data = evaluation(source="wikitext.txt")
    data["heldout"]["self_written"] = False
    for row in data["rows"]:
        del row["prefill_ratio"], row["decode_ratio"]
    write_json(folder / "evaluation.json", data)
    write_report(folder)
    text = (folder / "summary.md").read_text()
    assert "Each was timed 9 times." in text, "as it was evaluated, not as config.yaml says"
    assert "Shares of the dense model's latency are not given" in text
    del data["settings"]
    write_json(folder / "evaluation.json", data)
    write_report(folder)
    text = (folder / "summary.md").read_text()
    assert "16 sequences of 512 tokens from wikitext.txt" in text
    assert "only compares the rows of this table" not in text
    assert "Latency: median of repeated timings" in text and "Each was timed" not in text


def test_same_files_give_the_same_page(finished: Path) -> None:
    first = write_report(finished).read_bytes()
    assert write_report(finished).read_bytes() == first


def test_a_damaged_history_of_the_healing_is_named(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    file = folder / "heal" / "heal.jsonl"
    file.parent.mkdir(exist_ok=True)
    steps = [{"step": step, "validation_kl": 0.5 / (1 + step)} for step in range(3)]
    file.write_bytes(b"".join(map(sealed, steps)))
    assert len(read_run(folder).healing) == 3
    file.write_bytes(file.read_bytes().replace(b"0.25", b"0.26"))
    with pytest.raises(RunError, match="heal.jsonl is damaged.*remove the file"):
        read_run(folder)
    for text in ("null\n", "{}\n", "[1]\n", "x\n", "\xff\n"):
        file.write_text(text, encoding="latin1")
        with pytest.raises(RunError, match="heal.jsonl is damaged"):
            read_run(folder)


def test_the_law_of_a_healing_and_its_average_are_told(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    summary = {"tokens": 81920, "best_kl": 0.25, "next_kl": 0.21, "members": [0.27, 0.26, 0.29]}
    write_json(folder / "heal" / "heal.json", summary | {"averaged": [1, 0]})
    text = write_report(folder).read_text()
    assert "3 healings reached 0.270, 0.260, 0.290; the average of 2 of them was taken." in text
    assert "After 81,920 tokens it is 0.250; twice as many would bring it to 0.210" in text
