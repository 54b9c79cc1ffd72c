"""What allocation heuristics look at: special weights, and a library's errors."""

import numpy as np
import pytest
import torch

from evocompress.compression.library import build_library
from evocompress.compression.live_model import LiveModel
from evocompress.core.config import LibraryConfig
from evocompress.core.errors import LibraryError
from evocompress.core.requests import Estimate
from evocompress.core.types import DENSE, DROP, Candidate, Level
from evocompress.evaluation.estimates import ESTIMATES
from evocompress.evaluation.estimates.answer import LiveEstimates
from evocompress.evaluation.estimates.base import Subject
from evocompress.evaluation.estimates.tail_exponent import hill_exponent
from evocompress.testing.proxies import dropped
from evocompress.testing.tiny import tiny_loaded

UP = "model.layers.1.mlp.up_proj"
MLP = "model.layers.1.mlp"
LEVELS = {UP: (DENSE, Level(zeros=1000), Level(zeros=4000)), MLP: (DENSE, Level(channels=8), DROP)}


@pytest.fixture
def loaded():
    return tiny_loaded("llama")


def rows_of(kind, loaded, candidate=None):
    with LiveModel(loaded) as live:
        return ESTIMATES[kind](Subject(live, [], candidate or Candidate()))


class TestWeights:
    def test_equal_weights_share_their_lamp_score(self, loaded):
        weight = loaded.model.get_parameter(f"{UP}.weight")
        weight.fill_(0.5)
        weight[0] = -1.0
        row = np.array(rows_of("lamp", loaded)[UP])
        out, inputs = weight.shape
        large, all_of_them = inputs, inputs + (out - 1) * inputs * 0.25
        assert row[0] == pytest.approx(0.25 / all_of_them)
        assert row[-1] == pytest.approx(1 / large)
        assert len(np.unique(row)) == 2

    def test_a_matrix_of_zeros_has_quantiles_but_no_index(self, loaded):
        loaded.model.get_parameter(f"{UP}.weight").zero_()
        assert set(rows_of("magnitude", loaded)[UP]) == {0.0}
        assert set(rows_of("lamp", loaded)[UP]) == {0.0}
        assert np.isnan(rows_of("pq_index", loaded)[UP]).all()

    def test_the_index_leaves_zeros_out(self, loaded):
        weight = loaded.model.get_parameter(f"{UP}.weight")
        weight.fill_(0.3)
        weight[1:] = 0
        assert rows_of("pq_index", loaded)[UP][0] == pytest.approx(0, abs=1e-12)

    @pytest.mark.parametrize("kind", ["magnitude", "lamp", "tail_exponent", "pq_index"])
    def test_no_row_for_what_is_dropped(self, kind, loaded):
        assert rows_of(kind, loaded).keys() - rows_of(
            kind, loaded, dropped(loaded, "1.mlp")
        ).keys() == {f"{MLP}.{name}" for name in ("gate_proj", "up_proj", "down_proj")}


class TestTailExponent:
    @pytest.mark.parametrize("exponent", [1.5, 2.5, 4.0])
    def test_that_of_a_power_law(self, exponent):
        chances = (np.arange(4000) + 0.5) / 4000
        law = (1 - chances) ** (1 / (1 - exponent))
        assert hill_exponent(law) == pytest.approx(exponent, rel=0.05)

    def test_the_bulk_below_the_peak_does_not_count(self):
        chances = (np.arange(4000) + 0.5) / 4000
        law = (1 - chances) ** (1 / (1 - 3.0))
        mixed = np.sort(np.concatenate([np.linspace(0.01, 0.9, 500), law]))
        assert hill_exponent(mixed) == pytest.approx(3.0, rel=0.05)

    def test_a_spectrum_with_a_gap_above_its_peak(self):
        assert np.isfinite(hill_exponent(np.array([1e-6, 1.0, 1.1])))
        assert np.isfinite(hill_exponent(np.array([1.0, 1e6])))

    def test_one_direction_has_no_tail(self):
        assert np.isnan(hill_exponent(np.array([0.0, 0.0, 1.0])))


class TestOutputError:
    def library(self, loaded, path, criterion="sparsegpt"):
        tokens = torch.randint(1, 256, (6, 24), generator=torch.Generator().manual_seed(3))
        wanted = {name: [one for one in ls if one != DROP] for name, ls in LEVELS.items()}
        config = LibraryConfig(criterion=criterion)
        return build_library(loaded, wanted, tokens, "calibration", config, path, batch=2), tokens

    def test_those_of_brute_force(self, loaded, tmp_path):
        library, tokens = self.library(loaded, tmp_path / "library")
        seen = []
        module = loaded.model.get_submodule(UP)
        handle = module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        with torch.no_grad():
            loaded.model(tokens)
        handle.remove()
        inputs, dense = seen[0].flatten(0, 1).double(), module.weight.double()
        hessian = inputs.T @ inputs
        with LiveModel(loaded, library) as live:
            rows = ESTIMATES["output_error"](Subject(live, [], Candidate(), LEVELS))
        expected = []
        for level in LEVELS[UP][1:]:
            change = library.load(UP, level)["weight"].double() - dense
            expected.append(
                float((change @ hessian @ change.T).trace() / (dense @ hessian @ dense.T).trace())
            )
        assert rows[UP][0] == 0
        assert rows[UP][1:] == pytest.approx(expected, rel=1e-3)
        assert rows[MLP] == (0.0, library.error(MLP, LEVELS[MLP][1]), 1.0)

    def test_a_library_without_errors_is_named(self, loaded, tmp_path):
        library, _ = self.library(loaded, tmp_path / "library", "magnitude")
        with LiveModel(loaded, library) as live, pytest.raises(LibraryError, match="sparsegpt"):
            LiveEstimates(live, [], LEVELS).estimate(Estimate(Candidate(), "output_error", ()))

    def test_no_library(self, loaded):
        with LiveModel(loaded) as live, pytest.raises(LibraryError, match="no level library"):
            LiveEstimates(live, [], LEVELS).estimate(Estimate(Candidate(), "output_error", ()))
