"""What a report says where its figures contradict each other."""

import pytest
from fabricate import config, evaluation, run_folder, write_json

from evocompress.core.config import ProxyConfig
from evocompress.core.config_file import dump_config
from evocompress.report import write_report
from evocompress.report.data import Evaluation, Heldout, Row
from evocompress.report.measures import contradictions

HELDOUT = Heldout(source="t.txt", self_written=False, sequences=4, length=8)


def told(*rows: Row) -> list[str]:
    return list(contradictions(Evaluation(heldout=HELDOUT, rows=rows), "embedding"))


def test_distance_and_rank_correlation_that_disagree_are_named() -> None:
    lines = told(
        Row(name="dense", distance=0.0, spearman=1.0),
        Row(name="uniform", distance=0.164, spearman=0.81),
        Row(name="searched", distance=0.099, spearman=0.786),
        Row(name="healed", distance=0.05, spearman=0.95),
    )
    assert lines == [
        "Measures disagree: searched is better than uniform by embedding distance (0.099 against "
        "0.164), but worse by rank correlation of similarities (0.786 against 0.810).",
        "Where measures contradict each other: the search chose by the distance of embeddings and "
        "their similarities to the dense model's.",
    ]


@pytest.mark.parametrize(
    ("uniform", "searched"),
    [
        ({"kl": 0.4, "perplexity": 8.0}, {"kl": 0.3, "perplexity": 7.0}),
        ({"kl": 0.4, "perplexity": 8.0}, {"kl": 0.4, "perplexity": 7.0}),
        ({"kl": 0.4, "perplexity": 8.0}, {"kl": 0.3}),
        ({}, {}),
    ],
)
def test_measures_that_agree_are_not_mentioned(
    uniform: dict[str, float], searched: dict[str, float]
) -> None:
    assert told(Row(name="uniform", **uniform), Row(name="searched", **searched)) == []


@pytest.mark.parametrize(
    ("proxy", "name"), [("kl", "KL to the dense model"), ("perplexity", "log-perplexity")]
)
def test_the_page_says_what_the_search_chose_by(tmp_path, proxy: str, name: str) -> None:
    folder = run_folder(tmp_path / "run")
    changed = config("model").model_copy(update={"proxy": ProxyConfig(kind=proxy)})
    (folder / "config.yaml").write_text(dump_config(changed))
    write_report(folder)
    assert "Measures disagree" not in (folder / "summary.md").read_text()
    data = evaluation()
    data["rows"][2]["perplexity"] = 9.0
    write_json(folder / "evaluation.json", data)
    html = write_report(folder).read_text()
    assert "searched is better than uniform by KL (0.348 against 0.459), but worse by" in html
    assert f"the search chose by the {name}." in html
