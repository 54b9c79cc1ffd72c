"""What more healing brings, as a plan tells it."""

from dataclasses import asdict

import pytest
from test_planning import config

from evocompress import api
from evocompress.core.files import write_json
from evocompress.healing.cycles import tokens_that_pay
from evocompress.healing.law import HealingLaw
from evocompress.pipeline.planning import plan_notes
from evocompress.testing.tiny import tiny_checkpoint


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
