"""What of a student has a coarser type is not trained; all else is."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from evocompress.compression.library import build_library
from evocompress.compression.library.store import Library
from evocompress.compression.live_model import LiveModel
from evocompress.compression.quantization.quantized import unpack_parts
from evocompress.core.config import HealConfig, LibraryConfig
from evocompress.core.errors import ConfigError, ModelError
from evocompress.core.storage import storage_type
from evocompress.core.types import DENSE, DROP, Candidate, Level
from evocompress.export import materialize
from evocompress.export.parts import PARTS_FILE, read_parts
from evocompress.export.reload import read_checkpoint
from evocompress.healing import heal
from evocompress.healing.student import load_student
from evocompress.healing.trained import prepare_training
from evocompress.models.loading import LoadedModel, load
from evocompress.testing.tiny import tiny_checkpoint

Made = tuple[LoadedModel, Library]

TYPES = ("q4_0", "q5_1", "q8_0", "w5g32", "w8g64", "w8a8")

ZEROS = "model.layers.1.mlp.up_proj"
SPARSE = Level(zeros=4096, bits="w5g32")

LEARNING = {"learning_rate": 3e-3, "steps": 16, "evaluate_every": 4}
RECIPES: list[dict[str, Any]] = [
    {"train": "scales", "learning_rate": 1e-3},
    {"train": "all", "straight_through": True, **LEARNING},
    {"train": "all,scales", "straight_through": True, **LEARNING},
]


def config(**changes: Any) -> HealConfig:
    return HealConfig.model_validate(
        {"steps": 4, "evaluate_every": 2, "learning_rate": 1e-2} | changes
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    loaded = load(str(tiny_checkpoint(folder / "model", "llama")))
    tree = loaded.family.units(loaded.model)
    names = [unit.name for unit in tree if unit.kind == "matrix"]
    wanted = {name: (DENSE, *(Level(bits=kind) for kind in TYPES)) for name in names}
    wanted[ZEROS] = (*wanted[ZEROS], SPARSE)
    wanted["model.layers.0.mlp"] = (DENSE, Level(channels=64))
    tokens = torch.randint(1, 250, (8, 32), generator=torch.Generator().manual_seed(0))
    settings = LibraryConfig(width_criterion="magnitude")
    return loaded, build_library(loaded, wanted, tokens, "t", settings, folder / "library", batch=4)


def candidate_of(loaded: LoadedModel, types: Sequence[str], *, drop: bool = True) -> Candidate:
    """These types in turn, a word without letters for none; block 1 lacks its attention."""
    names = [unit.name for unit in loaded.family.units(loaded.model) if unit.kind == "matrix"]
    levels = {n: Level(bits=types[i % len(types)]) for i, n in enumerate(names)}
    levels = {name: level for name, level in levels.items() if not level.dense}
    if drop:
        levels |= {"model.layers.1.attention": DROP, "model.layers.0.mlp": Level(channels=64)}
        levels = {n: lv for n, lv in levels.items() if "layers.1.self_attn" not in n}
    return Candidate(tuple(sorted(levels.items())))


def changed(before: Path, after: Path) -> set[str]:
    first, second = (load_file(folder / "model.safetensors") for folder in (before, after))
    return {name for name in first if not torch.equal(first[name], second[name])}


@pytest.mark.parametrize("form", ["hf", "folded", "padded"])
def test_what_has_a_type_stays_and_all_else_is_trained(
    form: str, made: Made, train: Tensor, validation: Tensor, tmp_path: Path
) -> None:
    loaded, library = made
    candidate = candidate_of(loaded, ["q4_0", "", "q5_1"])
    student = materialize(loaded, library, candidate, tmp_path / "student", format=form)
    report = heal(student, loaded, train, validation, config(), tmp_path / "healed")
    assert report.best_step > 0
    moved = changed(student, Path(report.checkpoint))
    weights = load_file(student / "model.safetensors")
    typed = {f"{name}.weight" for name, level in candidate.levels if level.bits}
    if form == "folded":  # the MLP of block 1 is behind that of block 0
        moves = (("layers.1.mlp", "layers.0.after.0.mlp"), ("layers.2.", "layers.1."))
        for there, here in moves:
            typed = {name.replace(there, here) for name in typed}
    assert typed < weights.keys()
    filled = {name for name, weight in weights.items() if not weight.any()}
    if form == "padded":  # block 1 has a norm before an attention of zeros
        filled.add("model.layers.1.input_layernorm.weight")
    assert moved == weights.keys() - typed - filled
    assert {name for name in moved if "proj" in name}


def test_a_recipe_that_leaves_nothing_is_refused(
    made: Made, train: Tensor, validation: Tensor, tmp_path: Path
) -> None:
    loaded, library = made
    candidate = candidate_of(loaded, ["q4_0"], drop=False)
    student = materialize(loaded, library, candidate, tmp_path / "student")
    with pytest.raises(ConfigError, match="adapters are merged into matrices"):
        heal(student, loaded, train, validation, config(train="lora"), tmp_path / "healed")
    with pytest.raises(ConfigError, match="heal.train=head: all that it names has a coarser type"):
        prepare_training(
            load_student(student, loaded),
            loaded.family,
            config(train="head"),
            {"model.embed_tokens.weight": Level(bits="q4_0")},
        )


GGUF_LANE = ["q4_0", "", "q5_1", "q8_0"]
GROUPS_LANE = ["w5g32", "", "w8a8", "w8g64"]


def in_gguf(folder: Path) -> dict[str, Tensor]:
    """What gguf-py reads, by names in the checkpoint, but for rows that llama.cpp moves."""
    words = {"ffn_up": "mlp.up_proj", "ffn_gate": "mlp.gate_proj", "ffn_down": "mlp.down_proj"}
    words |= {"attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj"}
    found = {}
    for tensor in gguf.GGUFReader(folder / "model.gguf").tensors:
        place = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", tensor.name)
        if place and place[2] in words:
            values = gguf.dequantize(tensor.data, tensor.tensor_type)
            name = f"model.layers.{place[1]}.{words[place[2]]}.weight"
            found[name] = torch.from_numpy(values.copy())
    return found


def in_words(folder: Path) -> dict[str, Tensor]:
    """What the words of compressed-tensors stand for, bit by bit."""
    groups = json.loads((folder / "config.json").read_text())["quantization_config"]
    bits = {
        target: group["weights"]["num_bits"]
        for group in groups["config_groups"].values()
        for target in group["targets"]
    }
    tensors, found = load_file(folder / "model.safetensors"), {}
    for name, count in bits.items():
        if f"{name}.weight" in tensors:  # integers of a byte each
            integers = tensors[f"{name}.weight"].float()
            found[f"{name}.weight"] = integers * tensors[f"{name}.weight_scale"].float()
            continue
        rows, columns = tensors[f"{name}.weight_shape"].tolist()
        scales = tensors[f"{name}.weight_scale"].float()
        codes = []
        for row in tensors[f"{name}.weight_packed"].tolist():
            whole = sum((word & 0xFFFFFFFF) << (32 * place) for place, word in enumerate(row))
            codes.append([(whole >> (place * count)) & (2**count - 1) for place in range(columns)])
        integers = torch.tensor(codes).float() - 2 ** (count - 1)
        found[f"{name}.weight"] = integers * scales.repeat_interleave(columns // scales.shape[1], 1)
        assert integers.shape == (rows, columns)
    return found


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
@pytest.mark.parametrize("types", [GGUF_LANE, GROUPS_LANE], ids=["gguf", "groups"])
def test_what_is_trained_through_its_rounding_is_what_a_file_gives_back(
    types: list[str],
    recipe: dict[str, Any],
    made: Made,
    train: Tensor,
    validation: Tensor,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """To the bit, read by other code; and learning helps."""
    loaded, library = made
    candidate = candidate_of(loaded, types)
    student = materialize(loaded, library, candidate, tmp_path / "student", format="hf")
    report = heal(student, loaded, train, validation, config(**recipe), tmp_path / "healed")
    assert report.best_step > 0
    healed = Path(report.checkpoint)
    form, read = ("compressed-tensors", in_words) if "w8g64" in types else ("gguf", in_gguf)
    caplog.clear()
    out = materialize(loaded, library, candidate, tmp_path / "out", format=form, healed=healed)
    assert "anew" not in caplog.text
    weights, found = load_file(healed / "model.safetensors"), read(out)
    typed = {f"{name}.weight" for name, level in candidate.levels if level.bits}
    assert len(typed & found.keys()) >= 8
    for name in typed & found.keys():
        assert torch.equal(found[name], weights[name]), name
    assert typed <= changed(student, healed)
    before, after = read_parts(student), read_parts(healed)
    assert before.keys() == after.keys() == typed
    scales = "scales" in recipe["train"]
    for name, level in candidate.levels:
        if level.bits:
            kind, rows = storage_type(level.bits), weights[f"{name}.weight"].shape[1]
            first, last = (unpack_parts(p[f"{name}.weight"], kind, rows) for p in (before, after))
            assert torch.equal(first.scales, last.scales) != scales
            same = torch.equal(first.codes, last.codes)
            assert same if not recipe.get("straight_through") else not same


def test_a_student_rounds_what_its_matrices_read(
    made: Made, train: Tensor, validation: Tensor, tmp_path: Path
) -> None:
    """Its loss before the first step is the candidate's, not that of its weights alone."""
    loaded, library = made
    candidate = candidate_of(loaded, ["w8a8"], drop=False)
    student = materialize(loaded, library, candidate, tmp_path / "student")
    report = heal(student, loaded, train, validation, config(), tmp_path / "healed")
    with torch.no_grad(), LiveModel(loaded, library) as live:
        dense = loaded.model(validation).logits
        live.apply(candidate)
        own = loaded.model(validation).logits
        plain = read_checkpoint(student, loaded.model)(validation).logits
    assert report.initial_kl == pytest.approx(kl(dense, own), rel=1e-3)
    assert kl(dense, plain) < 0.5 * kl(dense, own)


def kl(logits: Tensor, others: Tensor) -> float:
    """Per position that has a next token."""
    p, q = (one[:, :-1].double().log_softmax(-1) for one in (logits, others))
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_zeros_stay_where_they_are_and_weights_that_are_rounded_to_zero_learn(
    made: Made, train: Tensor, validation: Tensor, tmp_path: Path
) -> None:
    loaded, library = made
    up, down = ZEROS, "model.layers.1.mlp.down_proj"
    levels = candidate_of(loaded, ["w8g64"]).by_name | {up: SPARSE}
    candidate = Candidate(tuple(sorted(levels.items())))
    student = materialize(loaded, library, candidate, tmp_path / "student")
    recipe = config(train="all,scales", straight_through=True, weight_decay=0.1, **LEARNING)
    report = heal(student, loaded, train, validation, recipe, tmp_path / "healed")
    assert report.best_step > 0
    before, after = (load_file(p / "model.safetensors") for p in (student, Path(report.checkpoint)))
    kept = before[f"{up}.weight"] == 0
    assert kept.sum() >= 4096
    assert not after[f"{up}.weight"][kept].any()
    zero = before[f"{down}.weight"] == 0
    assert zero.any() and after[f"{down}.weight"][zero].any()


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_a_resumed_healing_through_rounding_ends_in_the_same_bytes(
    recipe: dict[str, Any], made: Made, train: Tensor, validation: Tensor, tmp_path: Path
) -> None:
    loaded, library = made
    candidate = candidate_of(loaded, GGUF_LANE)
    student = materialize(loaded, library, candidate, tmp_path / "student", format="hf")
    given = (student, loaded, train, validation, config(**recipe))
    heal(*given, tmp_path / "whole")

    def stop(done: float, _: float, __: str) -> None:
        if done == config(**recipe).steps - 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        heal(*given, tmp_path / "parts", progress=stop)
    heal(*given, tmp_path / "parts", resume=True)
    for name in ("model.safetensors", PARTS_FILE, "README.md", "candidate.json"):
        files = [tmp_path / folder / "checkpoint" / name for folder in ("whole", "parts")]
        assert files[0].read_bytes() == files[1].read_bytes(), name


def test_one_of_several_candidates_may_have_no_types(
    made: Made,
    train: Tensor,
    validation: Tensor,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As of the last ones of a search: what else is named is trained."""
    loaded, _ = made
    candidate = Candidate((("model.layers.1.attention", DROP),))
    plain = materialize(loaded, None, candidate, tmp_path / "plain")
    recipe = config(
        train="all,scales", straight_through=True, **(LEARNING | {"learning_rate": 1e-3})
    )
    report = heal(plain, loaded, train, validation, recipe, tmp_path / "healed")
    assert report.best_step > 0 and changed(plain, Path(report.checkpoint))
    assert "nothing has a type with equal steps here" in caplog.text


def test_what_cannot_be_trained_through_its_rounding_is_named(
    made: Made, train: Tensor, validation: Tensor, tmp_path: Path
) -> None:
    loaded, library = made
    plain = materialize(loaded, None, Candidate(), tmp_path / "plain")
    recipe = config(train="scales")
    with pytest.raises(ConfigError, match="heal.train=scales: nothing that it trains has a type"):
        heal(plain, loaded, train, validation, recipe, tmp_path / "healed")
    candidate = candidate_of(loaded, ["q4_0"])
    padded = materialize(loaded, library, candidate, tmp_path / "padded", format="padded")
    with pytest.raises(ConfigError, match="has no types.parts, .*its format is .padded."):
        heal(padded, loaded, train, validation, recipe, tmp_path / "healed")
    written = (loaded, library, candidate, tmp_path / "other")
    other = materialize(*written, format="hf", weights="bfloat16")
    with pytest.raises(ModelError, match="is not what types.parts says: .* without --weights"):
        heal(other, loaded, train, validation, recipe, tmp_path / "healed")
    with pytest.raises(ConfigError, match="heal.straight_through: nothing that it trains"):
        nothing = config(train="norms", straight_through=True)
        heal(padded, loaded, train, validation, nothing, tmp_path / "healed")
    for wrong in ({"train": "scales"}, {"straight_through": True}):
        with pytest.raises(ValidationError, match="average=2 would take weights off the values"):
            config(average=2, **wrong)
