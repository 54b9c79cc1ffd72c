"""A teacher that is trained on the text first."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from evocompress.core.config import HealConfig
from evocompress.core.errors import ConfigError, RunError
from evocompress.core.files import read_json
from evocompress.evaluation.heldout import heldout_quality
from evocompress.export.reload import read_checkpoint
from evocompress.healing import adapt_teacher, heal
from evocompress.healing.adapting import sequences_for
from evocompress.models.loading import LoadedModel, fingerprint
from evocompress.testing.tiny import tiny_loaded

CONFIG = HealConfig(
    steps=4,
    batch=2,
    accumulate=2,
    learning_rate=2e-2,
    evaluate_every=3,
    adapt_teacher=512,
)


def told(tokens: Tensor) -> Tensor:
    """Text that can be learnt: each sequence repeats four of its tokens."""
    return tokens[:, :4].repeat(1, 4)


def test_it_tells_the_text_better_and_is_learnt_from(
    teacher: LoadedModel, student: Path, train: Tensor, validation: Tensor, tmp_path: Path
) -> None:
    text, judge = told(train), told(validation)
    adapted = adapt_teacher(teacher, text, judge, CONFIG, tmp_path / "heal" / "teacher")
    assert fingerprint(teacher.model) == teacher.fingerprint != adapted.fingerprint
    found = heldout_quality(teacher.model, {"a": adapted.model, "d": teacher.model}, judge)
    own = read_json(tmp_path / "heal" / "teacher" / "heal.json")
    assert own["measure"] == "cross-entropy of the next tokens" and own["tokens"] == 512
    assert own["initial_kl"] == pytest.approx(math.log(found["d"].perplexity), rel=1e-4)
    assert own["best_kl"] == pytest.approx(math.log(found["a"].perplexity), rel=1e-4)
    assert own["best_kl"] < own["initial_kl"]

    config = CONFIG.model_copy(update={"learning_rate": 3e-3})
    report = heal(student, adapted, text, judge, config, tmp_path / "heal", dense=teacher)
    healed = read_checkpoint(Path(report.checkpoint), teacher.model)
    kl = heldout_quality(adapted.model, {"h": healed}, judge)["h"].kl
    assert report.best_kl == pytest.approx(kl, rel=1e-4)
    assert report.best_kl < report.initial_kl
    assert report.measure == f"KL to {teacher.source}, adapted to the text"
    assert report.measure in (Path(report.checkpoint) / "README.md").read_text()
    both = config.model_copy(update={"top_k": 256})
    again = heal(student, adapted, text, judge, both, tmp_path / "kept", dense=teacher)
    assert again.best_kl == pytest.approx(report.best_kl, rel=1e-2)


def test_a_resumed_one_ends_in_the_same_weights(
    teacher: LoadedModel, train: Tensor, validation: Tensor, tmp_path: Path
) -> None:
    def stop(done: float, total: float, said: str) -> None:
        if done == 5:
            raise KeyboardInterrupt

    given = (teacher, train, validation, CONFIG)
    whole = adapt_teacher(*given, tmp_path / "whole" / "teacher")
    cut = tmp_path / "cut" / "teacher"
    with pytest.raises(KeyboardInterrupt):
        adapt_teacher(*given, cut, progress=stop)
    with pytest.raises(RunError, match=r"exists: resume it"):
        adapt_teacher(*given, cut)
    assert adapt_teacher(*given, cut, resume=True).fingerprint == whole.fingerprint
    first, second = (
        load_file(out / "checkpoint" / "model.safetensors")
        for out in (cut, tmp_path / "whole" / "teacher")
    )
    assert all(torch.equal(first[name], second[name]) for name in second)
    assert adapt_teacher(*given, cut, resume=True).fingerprint == whole.fingerprint
    assert not [path for path in cut.parent.iterdir() if path != cut]


def test_what_tells_no_next_token_is_refused(tmp_path: Path) -> None:
    texts = torch.randint(1, 240, (4, 16))
    with pytest.raises(ConfigError, match="is a model for embeddings: unset it"):
        adapt_teacher(tiny_loaded("bert"), texts, texts, CONFIG, tmp_path / "teacher")


def test_a_last_sequence_is_not_cut() -> None:
    assert sequences_for(CONFIG, 100) == 6
    assert sequences_for(HealConfig(), 100) == 0
