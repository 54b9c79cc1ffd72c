"""Healing from a teacher whose likeliest tokens are kept on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from evocompress.core.config import HealConfig
from evocompress.core.errors import ConfigError, RunError
from evocompress.core.progress import tell_nobody
from evocompress.core.types import DROP, Candidate
from evocompress.evaluation.heldout import heldout_quality
from evocompress.export import materialize
from evocompress.export.reload import read_checkpoint
from evocompress.healing import heal, top_k
from evocompress.healing.absent import absent
from evocompress.healing.distillation import Distillation
from evocompress.healing.loss import LEAST, of_buckets, of_logits, of_shares, pack
from evocompress.healing.student import load_student
from evocompress.healing.top_k import TopK
from evocompress.models.loading import LoadedModel, fingerprint
from evocompress.testing.tiny import tiny_loaded

CONFIG = HealConfig(steps=6, batch=2, accumulate=2, learning_rate=3e-3, evaluate_every=3, top_k=16)


def buckets(logits: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """By the definition, of each row."""
    log_p = logits.log_softmax(-1)
    tokens = log_p.topk(count).indices
    rest = 1 - log_p.exp().gather(1, tokens).sum(1)
    return tokens, log_p.gather(1, tokens), rest.clamp_min(1e-300).log().clamp_min(LEAST)


def plain(logits: Tensor, target: Tensor, count: int) -> Tensor:
    """The KL of distributions over the target's likeliest tokens and one more, with autograd."""
    total = torch.zeros((), dtype=torch.float64)
    for own, other in zip(logits, target, strict=True):
        q, p = own.softmax(-1), other.softmax(-1)
        chosen = p.topk(count).indices.tolist()
        others = [token for token in range(len(p)) if token not in chosen]
        for tokens in [*([token] for token in chosen), *([others] if others else [])]:
            total = total + p[tokens].sum() * (p[tokens].sum() / q[tokens].sum()).log()
    return total


@pytest.mark.parametrize("count", [1, 5, 39, 40])
def test_the_loss_is_the_divergence_of_the_coarser_distributions(count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, target = (
        3 * torch.randn(7, 40, dtype=torch.float64, generator=generator) for _ in range(2)
    )
    leaf = logits.clone().requires_grad_()
    expected = plain(leaf, target, count)
    (wanted,) = torch.autograd.grad(expected, leaf)
    value, gradient = of_shares(logits, *buckets(target, count))
    torch.testing.assert_close(value, expected.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-12)
    whole, of_whole = of_logits(logits, target)
    assert value <= whole + 1e-12
    if count == 40:
        torch.testing.assert_close(value, whole, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradient, of_whole, rtol=1e-10, atol=1e-12)
    packed, kept = of_buckets(logits, pack(*buckets(target, count)))
    torch.testing.assert_close(packed, value, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(kept, gradient, rtol=1e-5, atol=1e-6)


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "checkpoint" / "model.safetensors")


def equal(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def kept(teacher: LoadedModel, train: Tensor, folder: Path, count: int = 16) -> TopK:
    return TopK(teacher, torch.split(train, 2), count, folder)


def test_kept_targets_give_the_losses_that_the_teacher_gives(
    teacher: LoadedModel, student: Path, train: Tensor, tmp_path: Path
) -> None:
    model = load_student(student, teacher)
    whole = Distillation(model, teacher, train, 2)
    for count in (16, 256, 10_000):
        targets = kept(teacher, train, tmp_path / str(count), count).targets(tell_nobody)
        coarse = Distillation(model, teacher, train, 2, targets=targets).mean()
        if count == 16:
            assert 0.2 * whole.mean() < coarse < whole.mean()
        else:
            assert coarse == pytest.approx(whole.mean(), rel=1e-4)


def test_all_tokens_heal_as_the_teacher_itself(
    teacher: LoadedModel, student: Path, train: Tensor, validation: Tensor, tmp_path: Path
) -> None:
    whole = heal(
        student,
        teacher,
        train,
        validation,
        CONFIG.model_copy(update={"top_k": None}),
        tmp_path / "w",
    )
    config = CONFIG.model_copy(update={"top_k": 256})
    report = heal(student, teacher, train, validation, config, tmp_path / "k")
    assert report.initial_kl == whole.initial_kl
    assert report.best_kl == pytest.approx(whole.best_kl, rel=1e-3)


@pytest.mark.parametrize("average", [1, 2])
def test_the_figures_are_of_all_logits_and_nothing_but_the_healing_stays(
    teacher: LoadedModel,
    student: Path,
    train: Tensor,
    validation: Tensor,
    tmp_path: Path,
    average: int,
) -> None:
    out, config = tmp_path / "heal", CONFIG.model_copy(update={"average": average})
    report = heal(student, teacher, train, validation, config, out)
    assert fingerprint(teacher.model) == teacher.fingerprint
    healed = read_checkpoint(Path(report.checkpoint), teacher.model)
    found = heldout_quality(teacher.model, {"healed": healed}, validation)["healed"]
    assert report.best_kl == pytest.approx(found.kl, rel=1e-4)
    assert report.best_kl < report.initial_kl and report.measure == "KL to the dense model"
    assert not (out / "targets").exists()
    again = heal(student, teacher, train, validation, config, out, resume=True)
    assert again.best_kl == report.best_kl and not (out / "targets").exists()
    with pytest.raises(RunError, match="exists: resume it"):
        heal(student, teacher, train, validation, config, out)


def test_the_blocks_of_the_teacher_are_in_no_memory_while_it_is_absent(
    teacher: LoadedModel, tmp_path: Path
) -> None:
    before = {name: p.clone() for name, p in teacher.model.named_parameters()}
    with absent([teacher], tmp_path / "heal"):
        for name, parameter in teacher.model.named_parameters():
            assert torch.equal(parameter, before[name])
            # A mapped tensor shares its storage with all others of the file.
            assert (parameter.untyped_storage().nbytes() > parameter.nbytes) == ("layers" in name)
    assert all(torch.equal(p, before[name]) for name, p in teacher.model.named_parameters())
    assert all(p.untyped_storage().nbytes() == p.nbytes for p in teacher.model.parameters())
    assert not list((tmp_path / "heal").iterdir())


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file for each micro-batch."""
    monkeypatch.setattr(top_k, "PART_BYTES", 1)


def stop_at(word: str, number: int) -> Any:
    def stop(done: float, total: float, said: str) -> None:
        if word in said and done == number:
            raise KeyboardInterrupt

    return stop


@pytest.mark.usefixtures("small_parts")
def test_an_interrupted_teacher_goes_on_and_ends_in_the_same_weights(
    teacher: LoadedModel, student: Path, train: Tensor, validation: Tensor, tmp_path: Path
) -> None:
    given = (student, teacher, train, validation, CONFIG)
    heal(*given, tmp_path / "whole")
    cut = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        heal(*given, cut, progress=stop_at("likeliest", 2))
    first = cut / "targets" / "part-00000.npy"
    made = first.stat().st_mtime_ns
    assert len(list(first.parent.glob("*.npy"))) == 2
    with pytest.raises(KeyboardInterrupt):
        heal(*given, cut, resume=True, progress=stop_at("loss", 4))
    assert first.stat().st_mtime_ns == made and len(list(first.parent.glob("*.npy"))) == 4
    heal(*given, cut, resume=True)
    assert equal(cut, tmp_path / "whole")


@pytest.mark.usefixtures("small_parts")
def test_what_was_made_of_something_else_is_made_anew_and_damage_is_named(
    teacher: LoadedModel, train: Tensor, tmp_path: Path
) -> None:
    folder = tmp_path / "targets"
    before = kept(teacher, train, folder).targets(tell_nobody).of(0)
    after = kept(teacher, train.flip(0), folder).targets(tell_nobody).of(0)
    assert not torch.equal(before, after)
    path = folder / "part-00002.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(RunError, match=f"^{path} is damaged: remove {folder}, .*made anew$"):
        kept(teacher, train.flip(0), folder).targets(tell_nobody)


def test_what_has_no_likeliest_outputs_is_refused(tmp_path: Path) -> None:
    embedder = tiny_loaded("bert")
    layers = Candidate(((f"{embedder.family.layers_path}.1.mlp", DROP),))
    student = materialize(embedder, None, layers, tmp_path / "student")
    texts = torch.randint(1, 240, (4, 16))
    with pytest.raises(ConfigError, match="a model for embeddings, whose outputs are embeddings"):
        heal(student, embedder, texts, texts, CONFIG, tmp_path / "heal")
    for key in ("top_k", "adapt_teacher"):
        with pytest.raises(ValueError, match=f"which {key} does without: leave one of them out"):
            HealConfig.model_validate({"states": 1.0, key: 16})
