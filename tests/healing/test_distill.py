from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from evocompress.core.config import HealConfig
from evocompress.core.errors import DataError, ModelError, RunError
from evocompress.core.files import read_json, write_json
from evocompress.core.types import DROP, Candidate, Level
from evocompress.evaluation.heldout.quality import heldout_quality
from evocompress.export import materialize, read_candidate
from evocompress.healing import distill, heal
from evocompress.models.loading import LoadedModel, fingerprint
from evocompress.testing.plain_library import PlainLibrary
from evocompress.testing.tiny import tiny_loaded

CONFIG = HealConfig(steps=12, batch=2, accumulate=2, learning_rate=3e-3, evaluate_every=4)


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def interrupted(step: int, *healing: Any) -> None:
    """Healing that a user stops at a step."""

    def stop(done: float, total: float, text: str) -> None:
        if done >= step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        heal(*healing, progress=stop)


def test_healing_lowers_the_divergence_and_keeps_zeros(
    teacher: LoadedModel, student: Path, train: Tensor, validation: Tensor, tmp_path: Path
) -> None:
    report = heal(student, teacher, train, validation, CONFIG, tmp_path / "heal")
    healed = AutoModelForCausalLM.from_pretrained(report.checkpoint)
    broken = AutoModelForCausalLM.from_pretrained(student)
    quality = heldout_quality(teacher.model, {"b": broken, "h": healed}, validation)
    assert report.initial_kl == pytest.approx(quality["b"].kl, rel=1e-4)
    assert report.best_kl == pytest.approx(quality["h"].kl, rel=1e-4)
    assert report.best_kl < 0.9 * report.initial_kl
    for name, before in weights(student).items():
        after = weights(Path(report.checkpoint))[name]
        assert not torch.equal(before, after)
        if "mlp" in name:
            assert torch.equal(before == 0, after == 0)
    assert report.tokens == 12 * 4 * 16


def test_teacher_and_student_folder_are_not_changed(
    teacher: LoadedModel, student: Path, train: Tensor, validation: Tensor, tmp_path: Path
) -> None:
    files = {path: path.read_bytes() for path in student.iterdir()}
    before = [(p.data_ptr(), p.clone()) for p in teacher.model.parameters()]
    heal(student, teacher, train, validation, CONFIG, tmp_path / "heal")
    assert fingerprint(teacher.model) == teacher.fingerprint
    for parameter, (pointer, values) in zip(teacher.model.parameters(), before, strict=True):
        assert (parameter.data_ptr(), parameter.requires_grad) == (pointer, False)
        assert parameter.grad is None and torch.equal(parameter, values)
    assert files == {path: path.read_bytes() for path in student.iterdir()}


def test_checkpoint_is_of_the_students_format_with_all_its_files(
    teacher: LoadedModel, student: Path, train: Tensor, validation: Tensor, tmp_path: Path
) -> None:
    out = tmp_path / "heal"
    heal(student, teacher, train, validation, CONFIG, out)
    names = {path.name for path in student.iterdir()}
    assert {path.name for path in (out / "checkpoint").iterdir()} == names
    assert "modeling_derived.py" in names
    assert read_candidate(out / "checkpoint") == read_candidate(student)
    config = json.loads((out / "checkpoint" / "config.json").read_text())
    assert config == json.loads((student / "config.json").read_text())
    assert "## Healing" in (out / "checkpoint" / "README.md").read_text()
    model = AutoModelForCausalLM.from_pretrained(out / "checkpoint")
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_history_has_every_step(
    teacher: LoadedModel, student: Path, train: Tensor, validation: Tensor, tmp_path: Path
) -> None:
    report = heal(student, teacher, train, validation, CONFIG, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "heal.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(13))
    measured = {line["step"]: line["validation_kl"] for line in lines if line["validation_kl"]}
    assert list(measured) == [0, 4, 8, 12]
    assert min(measured.values()) == measured[report.best_step] == report.best_kl
    assert json.loads((tmp_path / "heal.json").read_text())["best_kl"] == report.best_kl


def test_resumed_healing_ends_in_the_same_weights(
    teacher: LoadedModel,
    student: Path,
    train: Tensor,
    validation: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = heal(student, teacher, train, validation, CONFIG, tmp_path / "whole")

    cut = tmp_path / "cut"
    interrupted(10, student, teacher, train, validation, CONFIG, cut)
    resumed = heal(student, teacher, train, validation, CONFIG, cut, resume=True)
    assert equal(weights(cut / "checkpoint"), weights(tmp_path / "whole" / "checkpoint"))
    histories = [(folder / "heal.jsonl").read_text() for folder in (cut, tmp_path / "whole")]
    assert histories[0] == histories[1]
    assert (resumed.best_kl, resumed.best_step) == (whole.best_kl, whole.best_step)
    again = heal(student, teacher, train, validation, CONFIG, cut, resume=True)
    assert again.final_kl == whole.final_kl


def test_resuming_another_recipe_is_refused(
    teacher: LoadedModel, student: Path, train: Tensor, validation: Tensor, tmp_path: Path
) -> None:
    short = CONFIG.model_copy(update={"steps": 1})
    heal(student, teacher, train, validation, short, tmp_path / "heal")
    with pytest.raises(RunError, match="exists: resume it"):
        heal(student, teacher, train, validation, short, tmp_path / "heal")
    with pytest.raises(RunError, match="another training data, configuration"):
        heal(student, teacher, train[1:], validation, CONFIG, tmp_path / "heal", resume=True)


def test_other_circumstances_are_refused_unless_forced_and_then_recorded(
    teacher: LoadedModel, student: Path, train: Tensor, validation: Tensor, tmp_path: Path
) -> None:
    config, out = CONFIG.model_copy(update={"steps": 4, "evaluate_every": 2}), tmp_path / "heal"
    interrupted(3, student, teacher, train, validation, config, out)
    state = out / "state" / "step-00000002" / "state.json"
    known = read_json(state)
    assert known["circumstances"]["versions"]["torch"] == torch.__version__
    whole = json.dumps(known["circumstances"])
    for key, value in {
        "versions": {"torch": "1.0"},
        "device": "cpu: Another One",
        "instructions": "NONE",
        "threads": 64,
        "dtype": "float8",
    }.items():
        known["circumstances"] = json.loads(whole) | {key: value}
        write_json(state, known)
        with pytest.raises(RunError, match="(torch|device|instructions|threads|dtype) was .*, is"):
            heal(student, teacher, train, validation, config, out, resume=True)
    heal(student, teacher, train, validation, config, out, resume=True, force=True)
    told = read_json(out / "heal.json")["circumstances"]
    [change] = told["changes"]
    assert (change["step"], told["dtype"], change["dtype"]) == (2, "float8", "float32")
    again = heal(student, teacher, train, validation, config, out, resume=True)
    assert again.circumstances == told  # there was nothing left to compute


def test_a_state_that_does_not_say_under_what_it_was_made_goes_on(
    teacher: LoadedModel, student: Path, train: Tensor, validation: Tensor, tmp_path: Path
) -> None:
    config = CONFIG.model_copy(update={"steps": 2, "evaluate_every": 1})
    heal(student, teacher, train, validation, config, tmp_path / "whole")
    interrupted(0, student, teacher, train, validation, config, tmp_path / "cut")
    [state] = (tmp_path / "cut").glob("state/*/state.json")
    known = read_json(state)
    del known["circumstances"]
    write_json(state, known)
    heal(student, teacher, train, validation, config, tmp_path / "cut", resume=True)
    assert equal(
        weights(tmp_path / "cut" / "checkpoint"), weights(tmp_path / "whole" / "checkpoint")
    )


def test_accumulating_equals_larger_batches(
    teacher: LoadedModel, student: Path, train: Tensor, validation: Tensor, tmp_path: Path
) -> None:
    results = []
    for batch, accumulate in ((2, 1), (1, 2)):
        config = CONFIG.model_copy(update={"steps": 4, "batch": batch, "accumulate": accumulate})
        out = tmp_path / f"{batch}"
        heal(student, teacher, train[:2], validation, config, out)
        results.append(weights(out / "checkpoint"))
    for name in results[0]:
        torch.testing.assert_close(results[0][name], results[1][name], rtol=1e-3, atol=1e-4)


def test_divergence_stops_with_the_best_checkpoint_kept(
    teacher: LoadedModel,
    student: Path,
    train: Tensor,
    validation: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = distill.learning_rate
    monkeypatch.setattr(
        distill, "learning_rate", lambda step, c: real(step, c) if step < 5 else float("nan")
    )
    with pytest.raises(RunError, match=r"diverged at step 7 .*lower heal\.learning_rate"):
        heal(student, teacher, train, validation, CONFIG, tmp_path / "heal")
    healed = AutoModelForCausalLM.from_pretrained(tmp_path / "heal" / "checkpoint")
    assert all(parameter.isfinite().all() for parameter in healed.parameters())


def strict_json(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_validation_that_is_not_finite_is_null(
    teacher: LoadedModel,
    student: Path,
    train: Tensor,
    validation: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    value: float,
) -> None:
    divergences = iter([0.5, 0.4, value, value])
    monkeypatch.setattr(distill.Distillation, "mean", lambda _: next(divergences))
    report = heal(student, teacher, train, validation, CONFIG, tmp_path)
    assert (report.initial_kl, report.best_kl, report.best_step) == (0.5, 0.4, 4)
    assert report.final_kl is None
    assert strict_json((tmp_path / "heal.json").read_text())["final_kl"] is None
    history = [strict_json(line) for line in (tmp_path / "heal.jsonl").read_text().splitlines()]
    assert all(record.pop("xxh3") for record in history)
    assert [history[step]["validation_kl"] for step in (4, 8, 12)] == [0.4, None, None]
    (state,) = (tmp_path / "state").iterdir()
    assert strict_json((state / "state.json").read_text())["history"] == history
    again = heal(student, teacher, train, validation, CONFIG, tmp_path, resume=True)
    assert again.final_kl is None


def test_a_student_whose_divergence_is_not_finite_is_refused(
    teacher: LoadedModel,
    student: Path,
    train: Tensor,
    validation: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distill.Distillation, "mean", lambda _: math.nan)
    with pytest.raises(RunError, match="cannot be healed: its KL is not finite"):
        heal(student, teacher, train, validation, CONFIG, tmp_path / "heal")


def test_a_truncated_student_is_named(
    teacher: LoadedModel, student: Path, train: Tensor, validation: Tensor, tmp_path: Path
) -> None:
    path = student / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match=f"^{path} is damaged or truncated.*$"):
        heal(student, teacher, train, validation, CONFIG, tmp_path / "heal")


def test_a_truncated_state_is_named(
    teacher: LoadedModel, student: Path, train: Tensor, validation: Tensor, tmp_path: Path
) -> None:
    heal(student, teacher, train, validation, CONFIG, tmp_path / "heal")
    (path,) = (tmp_path / "heal" / "state").glob("*/state.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunError, match=f"^{path} is damaged.*remove {tmp_path / 'heal'} to heal"):
        heal(student, teacher, train, validation, CONFIG, tmp_path / "heal", resume=True)


@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
def test_flipped_bits_of_a_state_are_found(
    teacher: LoadedModel,
    student: Path,
    train: Tensor,
    validation: Tensor,
    tmp_path: Path,
    name: str,
) -> None:
    heal(student, teacher, train, validation, CONFIG, tmp_path / "heal")
    (path,) = (tmp_path / "heal" / "state").glob(f"*/{name}")
    whole = path.read_bytes()
    for place in (3, len(whole) // 2, len(whole) - 4):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 2]) + whole[place + 1 :])
        with pytest.raises(RunError, match=f"^{path} (is damaged|was changed).*remove"):
            heal(student, teacher, train, validation, CONFIG, tmp_path / "heal", resume=True)
    for text in ("{}", "null", '{"recipe": 1}', '{"recipe": {}, "best": null, "history": []}'):
        (path.parent / "state.json").write_text(text)
        with pytest.raises(RunError, match="state.json is damaged"):
            heal(student, teacher, train, validation, CONFIG, tmp_path / "heal", resume=True)


def test_wrong_inputs_are_named(
    teacher: LoadedModel, student: Path, train: Tensor, validation: Tensor, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="to choose the best"):
        heal(student, teacher, train, validation[:0], CONFIG, tmp_path / "heal")
    with pytest.raises(ModelError, match="is not a checkpoint: it has no config.json"):
        heal(tmp_path / "nothing", teacher, train, validation, CONFIG, tmp_path / "heal")


def test_stock_students_of_other_families_heal_in_bfloat16(
    train: Tensor, validation: Tensor, tmp_path: Path
) -> None:
    for family in ("gpt2", "gemma3_text", "opt"):
        teacher = tiny_loaded(family, dtype=torch.bfloat16)
        block = f"{teacher.family.layers_path}.1"
        candidate = Candidate(((f"{block}.attention", DROP), (f"{block}.mlp", DROP)))
        student = materialize(teacher, None, candidate, tmp_path / family)
        report = heal(student, teacher, train, validation, CONFIG, tmp_path / f"{family}-healed")
        assert report.best_kl < report.initial_kl
        model = AutoModelForCausalLM.from_pretrained(report.checkpoint)
        assert model.dtype == torch.bfloat16


NARROW = {
    "model.layers.0.attention": Level(kv_groups=1, group_heads=2, bias=True),
    "model.layers.1.mlp": Level(channels=40, bias=True),
    "model.layers.2.attention": Level(kv_groups=2, group_heads=1),
    "model.layers.2.mlp": DROP,
}


@pytest.mark.parametrize("format", ["hf", "padded"])
def test_narrow_students_keep_their_widths(
    teacher: LoadedModel, train: Tensor, validation: Tensor, tmp_path: Path, format: str
) -> None:
    library = PlainLibrary(teacher)
    narrow = materialize(
        teacher, library, Candidate(tuple(NARROW.items())), tmp_path / "narrow", format=format
    )
    report = heal(narrow, teacher, train, validation, CONFIG, tmp_path / "heal")
    assert report.best_kl < 0.95 * report.initial_kl
    before, after = weights(narrow), weights(Path(report.checkpoint))
    assert {k: v.shape for k, v in before.items()} == {k: v.shape for k, v in after.items()}
    matrices = [name for name, weight in before.items() if weight.ndim == 2 and "layers" in name]
    assert all(torch.equal(before[name] == 0, after[name] == 0) for name in matrices)
    config = (narrow / "config.json").read_text()
    assert (Path(report.checkpoint) / "config.json").read_text() == config
