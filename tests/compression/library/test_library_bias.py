"""Biases that give back what zeros take from the mean output, against float64."""

import logging
from pathlib import Path

import pytest
import torch
from library_setting import Setting, as_rows, brute_force_inputs, matrix_units

from evocompress.compression.library import open_library
from evocompress.compression.live_model import LiveModel
from evocompress.core.config import HealConfig
from evocompress.core.errors import LibraryError
from evocompress.core.types import DENSE, Candidate, Level
from evocompress.evaluation.estimates.changes import wide_form
from evocompress.export import materialize
from evocompress.export.record import read_record
from evocompress.export.reload import read_checkpoint
from evocompress.healing import heal
from evocompress.space.costs import cost_model


def biased(model_type, **options):
    """A setting whose model has biases that are not zero."""
    setting = Setting(model_type, **options)
    generator = torch.Generator().manual_seed(5)
    for name, parameter in setting.loaded.model.named_parameters():
        if name.endswith(".bias"):
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return setting


class Reference:
    """A dense matrix and its inputs in float64."""

    def __init__(self, setting, unit):
        self.module = setting.loaded.model.get_submodule(unit)
        self.inputs = brute_force_inputs(setting.loaded.model, setting.tokens, unit).flatten(0, 1)
        self.dense = as_rows(self.module, self.module.weight.data).double()
        own = self.module.bias
        self.bias = torch.zeros(1) if own is None else own.data.double()

    def lost(self, found):
        """What compressed tensors of full width lack of the outputs (tokens, out)."""
        weight = as_rows(self.module, found["weight"]).double()
        own = found.get("bias", self.bias).double()
        return self.inputs @ (self.dense - weight).T + self.bias - own

    def error(self, found):
        """Relative to the outputs without the bias, as the library measures."""
        outputs = self.inputs @ self.dense.T
        return float(self.lost(found).square().sum() / outputs.square().sum())


@pytest.mark.parametrize("model_type", ["gpt2", "opt"])
@pytest.mark.parametrize("criterion", ["wanda", "sparsegpt+update"])
def test_the_mean_of_every_output_is_as_before(model_type, criterion, tmp_path):
    setting = biased(model_type, criterion=f"{criterion}+bias")
    setting.build(tmp_path / "bias")
    library = open_library(tmp_path / "bias", setting.loaded)
    plain = biased(model_type, criterion=criterion).build(tmp_path / "plain")
    for unit, levels in setting.wanted.items():
        reference = Reference(setting, unit)
        for level in levels[1:]:
            found, without = library.load(unit, level), plain.load(unit, level)
            assert torch.equal(found["weight"], without["weight"])
            before, after = (reference.lost(one).mean(0).norm() for one in (without, found))
            assert after < 1e-5 * reference.dense.norm() and after < 1e-3 * before
            assert reference.error(found) < reference.error(without)
            if criterion != "wanda":
                assert library.error(unit, level) == pytest.approx(reference.error(found), rel=1e-3)


def test_later_blocks_see_the_biases_with_propagated_hessians(tmp_path):
    setting = biased("gpt2", criterion="wanda+bias", hessians="propagated")
    library = setting.build(tmp_path / "library")
    middle = {unit: levels[1] for unit, levels in setting.wanted.items()}
    for block in range(3):
        names = [unit for unit in middle if unit.startswith(f"transformer.h.{block}.")]
        found = {name: library.load(name, middle[name]) for name in names}
        for name in names:
            lost = Reference(setting, name).lost(found[name]).mean(0)
            assert float(lost.abs().max()) < 1e-5
        for name in names:
            module = setting.loaded.model.get_submodule(name)
            module.weight.data, module.bias.data = found[name]["weight"], found[name]["bias"]


@pytest.mark.parametrize(
    ("model_type", "width_criterion"),
    [("gpt2", "obs_structured"), ("opt", "flap"), ("qwen2", "flap")],
)
def test_narrowed_matrices_keep_the_mean_that_the_width_left(model_type, width_criterion, tmp_path):
    options = {"width_criterion": width_criterion, "criterion": "wanda+bias"}
    setting = biased(model_type, widths=True, **options)
    library = setting.build(tmp_path / "library")
    for unit in matrix_units(setting.loaded):
        if unit.block != 1 or not (unit.bias or unit.columns):
            continue
        width, level = setting.wanted[unit.parent][2], setting.wanted[unit.name][2]
        cut, found = library.load(unit.parent, width), library.load(unit.name, level, width)
        reference = Reference(setting, unit.name)
        if unit.columns:
            size = reference.dense.shape[1] // setting_items(setting, unit)
            columns = (cut["items"][:, None] * size + torch.arange(size)).flatten()
            weight, bias = as_rows(reference.module, cut["weight"]).double(), cut["bias"].double()
            inputs = reference.inputs[:, columns]
        else:
            rows = kept_rows(setting, unit, cut, len(reference.dense))
            weight, bias, inputs = reference.dense[rows], reference.bias[rows], reference.inputs
        sparse = as_rows(reference.module, found["weight"]).double()
        assert int((sparse == 0).sum()) and sparse.shape == weight.shape
        lost = inputs @ (weight - sparse).T + bias - found["bias"].double()
        assert float(lost.mean(0).abs().max()) < 1e-5


def setting_items(setting, unit):
    shape = setting.loaded.family.architecture(setting.loaded.model)
    return shape.channels[unit.block] if "mlp" in unit.parent else shape.heads[unit.block]


def kept_rows(setting, unit, cut, rows):
    """Rows of a first matrix; GPT-2's attention has those of queries, keys and values."""
    parts = 3 if unit.name.endswith("c_attn") else 1
    size = rows // parts // setting_items(setting, unit)
    own = (cut["items"][:, None] * size + torch.arange(size)).flatten()
    return torch.cat([own + part * (rows // parts) for part in range(parts)])


def half(setting):
    """The middle level everywhere, as a candidate."""
    levels = {unit: levels[2] for unit, levels in setting.wanted.items()}
    return Candidate(tuple(sorted(levels.items())))


@pytest.mark.parametrize("model_type", ["gpt2", "qwen2"])
def test_live_checkpoint_and_reloaded_model_are_equal_and_healing_keeps_them(model_type, tmp_path):
    setting = biased(model_type, criterion="wanda+bias")
    library, candidate = setting.build(tmp_path / "library"), half(setting)
    loaded, ids = setting.loaded, setting.tokens[:2]
    dense = loaded.model(ids).logits
    with LiveModel(loaded, library) as live:
        live.apply(candidate)
        alive = loaded.model(ids).logits
    assert torch.equal(loaded.model(ids).logits, dense)
    folder = materialize(loaded, library, candidate, tmp_path / "made")
    again = read_checkpoint(folder, loaded.model)
    assert torch.equal(again(ids).logits, alive)
    record = read_record(folder)
    assert record.measured["params"] == sum(p.numel() for p in again.parameters())
    family = loaded.family
    costs = cost_model(family.units(loaded.model), family.architecture(loaded.model))
    assert record.measured["params"] == costs.of([candidate])["params"].item()
    before = dict(again.named_parameters())
    changed = [unit for unit, level in candidate.levels if "bias" in library.load(unit, level)]
    biases = [f"{unit}.bias" for unit in changed]
    assert biases and all(
        not torch.equal(before[name], loaded.model.get_parameter(name)) for name in biases
    )
    config = HealConfig(steps=8, batch=2, learning_rate=1e-3, evaluate_every=4)
    report = heal(folder, loaded, setting.tokens[:6], setting.tokens[6:], config, tmp_path / "heal")
    after = dict(read_checkpoint(Path(report.checkpoint), loaded.model).named_parameters())
    assert after.keys() == before.keys()
    for unit in setting.wanted:
        assert torch.equal(before[f"{unit}.weight"] == 0, after[f"{unit}.weight"] == 0)
    assert report.best_kl < report.initial_kl
    for name in biases:
        moved = (before[name] - after[name]).detach().abs().max()
        assert 0 < float(moved) < 0.02


def test_matrices_without_a_bias_are_left_and_named_once(tmp_path, caplog):
    setting = biased("qwen2", criterion="wanda+bias")
    plain = biased("qwen2", criterion="wanda").build(tmp_path / "plain")
    with caplog.at_level(logging.WARNING):
        library = setting.build(tmp_path / "library")
    (line,) = [one.getMessage() for one in caplog.records if "bias" in one.getMessage()]
    lacking = [unit for unit in setting.wanted if unit.rsplit(".", 1)[1][0] not in "qkv"]
    assert f"no bias of {len(lacking)} matrices" in line and lacking[0] in line
    for unit, levels in setting.wanted.items():
        found = library.load(unit, levels[1])
        assert ("bias" in found) == (unit not in lacking)
        assert torch.equal(found["weight"], plain.load(unit, levels[1])["weight"])


def test_a_model_without_biases_is_refused(tmp_path):
    setting = Setting("llama", criterion="wanda+bias")
    with pytest.raises(LibraryError, match=r"wanda\+bias gives .* leave out \+bias") as refused:
        setting.build(tmp_path / "library")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "library").exists()


def test_estimates_from_gradients_see_the_biases(tmp_path):
    setting = biased("gpt2", criterion="wanda+bias")
    library = setting.build(tmp_path / "library")
    unit, (_, level, *_) = next(iter(setting.wanted.items()))
    found = library.load(unit, level)
    with (
        LiveModel(setting.loaded, library) as live,
        wide_form(live, Candidate(), {unit: [DENSE, level]}) as wide,
    ):
        own = live.units[unit]
        dense = wide.values(own, DENSE)[f"{unit}.bias"].tensor
        assert torch.equal(dense, setting.loaded.model.get_parameter(f"{unit}.bias"))
        assert torch.equal(wide.values(own, level)[f"{unit}.bias"].tensor, found["bias"])


def test_widths_with_biases_compute_the_same_in_wide_form(tmp_path):
    setting = biased("gpt2", widths=True, criterion="wanda+bias")
    library, unit = setting.build(tmp_path / "library"), "transformer.h.1.mlp"
    output = f"{unit}.c_proj"
    chosen = {unit: Level(channels=40), output: setting.wanted[output][2]}
    candidate, ids = Candidate(tuple(sorted(chosen.items()))), setting.tokens[:2]
    with LiveModel(setting.loaded, library) as live:
        live.apply(candidate)
        narrow = setting.loaded.model(ids).logits
        live.restore()
        with wide_form(live, candidate, {}):
            wide = setting.loaded.model(ids).logits
    assert float((narrow - wide).abs().max()) < 1e-5
