"""Sentences and headlines of a report on their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fabricate import environment, evaluation, run_folder

from evocompress.core.circumstances import Environment
from evocompress.report.data import Evaluation, read_run
from evocompress.report.notes import Headline, budget_text, environment_facts, front_text, headlines


def test_a_budget_in_words() -> None:
    assert budget_text({"params": 0.5, "nonzeros": 2e6}) == (
        "parameters ≤ 50% of dense, non-zero parameters ≤ 2,000,000"
    )
    assert budget_text({"latency": 1.5}) == "latency of a prefill ≤ 1,500 ms"
    assert budget_text({}) == "none"


def first_headline(costs: Sequence[str], **searched: Any) -> Headline:
    """Of an evaluation whose searched model differs in some values from the fabricated one."""
    data = evaluation()
    data["rows"][0]["predicted"] = {"kv_bytes": 400.0, "decode_flops": 200.0, "params": 1.0}
    data["rows"][2] |= {"params": 100_000_000, "nonzeros": 80_000_000} | searched
    data["rows"][2]["predicted"] = {"kv_bytes": 100.0, "decode_flops": 150.0, "params": 0.5}
    return headlines(Evaluation.model_validate(data), costs)[0]


@pytest.mark.parametrize(
    ("cost", "headline"),
    [
        ("params", Headline("Parameters", "74.3%", "of the dense model")),
        ("body_params", Headline("Parameters", "74.3%", "of the dense model")),
        ("body_nonzeros", Headline("Non-zero parameters", "59.5%", "of the dense model")),
        ("matrix_nonzeros", Headline("Non-zero parameters", "59.5%", "of the dense model")),
        ("kv_bytes", Headline("KV-cache bytes", "25%", "of the dense model, predicted")),
        (
            "decode_flops",
            Headline("FLOPs of a decoded token", "75%", "of the dense model, predicted"),
        ),
        (
            "latency",
            Headline(
                "Latency of a prefill",
                "100.3%",
                "not told apart from the dense model (99.3% – 101.3%)",
            ),
        ),
        (
            "decode_latency",
            Headline("Latency of a decoded token", "97%", "of the dense model (96% – 98%)"),
        ),
    ],
)
def test_the_first_headline_is_the_cost_of_the_budget(cost: str, headline: Headline) -> None:
    assert first_headline([cost]) == headline


def test_without_a_known_cost_the_headline_is_of_the_non_zeros() -> None:
    assert first_headline([]).title == "Non-zero parameters"
    assert first_headline(["latency"], prefill_ratio=None).title == "Non-zero parameters"
    assert first_headline(["latency", "params"], prefill_ratio=None).title == "Parameters"


def test_the_machine_is_told_with_the_dtype_that_it_computed_in() -> None:
    told = environment_facts(Environment.model_validate(environment()))
    assert told["Machine"] == "cpu: Example 9000, bfloat16, 2 threads, Linux-6.1-x86_64"
    older = environment_facts(Environment(device="cpu: Example 9000"))
    assert older["Machine"] == "cpu: Example 9000"


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (1, " 1 other candidate was not measured on all"),
        (1200, " 1,200 other candidates were not measured on all"),
        (0, None),
        (None, None),  # of an older version
    ],
)
def test_candidates_that_are_not_compared_are_told(
    tmp_path: Path, count: int | None, said: str | None
) -> None:
    run = read_run(run_folder(tmp_path / "run"))
    assert run.winner
    counted = run.winner.model_copy(update={"not_compared": count})
    text = front_text(replace(run, winner=counted), ["nonzeros"])
    assert said in text if said else "not measured" not in text
