"""What more healing brings, as a plan tells it."""

from dataclasses import asdict, replace

import pytest
from test_planning import LENGTH, config

from evocompress import api
from evocompress.core.files import write_json
from evocompress.healing.cycles import tokens_that_pay
from evocompress.healing.law import HealingLaw
from evocompress.pipeline.planning import DEVICES, make_plan, plan_notes
from evocompress.testing.tiny import tiny_checkpoint, tiny_loaded


@pytest.mark.parametrize("tokens", [64_000, "auto"])
def test_what_more_healing_brings_is_foretold_by_the_law_of_the_one_there_is(tmp_path, tokens):
    law = HealingLaw(before=1.0, floor=0.2, scale=1e4, exponent=0.5)
    known = {"law": asdict(law), "tokens": 16_384, "best_kl": law.kl(16_384)}
    (tmp_path / "n" / "heal").mkdir(parents=True)
    write_json(tmp_path / "n" / "heal" / "heal.json", known)
    checkpoint = tiny_checkpoint(tmp_path / "model")
    planned = config(checkpoint, runs=tmp_path, heal={"tokens": tokens})
    (note,) = [note for note in plan_notes(api.plan(planned, "h100")) if "law" in note]
    wanted = tokens_that_pay(law, planned.heal) if tokens == "auto" else tokens
    assert f" {wanted:,} tokens" in note and f"bring {law.kl(wanted):.4g}" in note
    write_json(tmp_path / "n" / "heal" / "heal.json", known | {"law": None})
    assert not [note for note in plan_notes(api.plan(planned, "h100")) if "law" in note]


def test_short_healings_are_planned_as_so_many_healings_of_these_tokens():
    last = {"candidates": 3, "tokens": 1000}
    settings = {"average": 2, "validation_sequences": 4, "batch": 2, "accumulate": 2}
    loaded, changes = tiny_loaded(), {"heal": settings}
    search = {"name": "auto", "tokens": 4000}

    def plan(heal_last, **heal):
        run = config(search=search | {"heal_last": heal_last}, heal=changes["heal"] | heal)
        return make_plan(run, loaded, DEVICES["h200"])

    found, one = plan(last), plan(None, tokens=1000)
    assert [stage.name for stage in found.stages] == ["library", "search", "heal_last", "heal"]
    short, whole = found.stages[2], one.stages[-1]
    assert found.seconds(short) == pytest.approx(3 * one.seconds(whole))
    assert short.device_bytes == whole.device_bytes and short.disk_bytes > whole.disk_bytes
    per_step = 4 * LENGTH  # two sequences, twice
    each = -(-1000 // per_step) * per_step
    said = f"3 candidates are healed with {each:,} tokens each, {3 * each:,} in all"
    assert any(said in note for note in found.notes)
    assert not any("heal_last" in note for note in one.notes)
    slow = replace(DEVICES["h200"], memory=short.device_bytes - 1)
    advice = make_plan(config(search=search | {"heal_last": last}, **changes), loaded, slow).advice
    assert any(line.startswith("heal_last needs") and "heal.batch=1" in line for line in advice)
