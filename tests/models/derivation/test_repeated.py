"""Models of which several layers share their weights: one block, run several times."""

from __future__ import annotations

import pytest
import torch
from transformers import AlbertConfig, AlbertModel

from evocompress.compression.library.gram import collecting
from evocompress.compression.library.hidden import HiddenStates
from evocompress.core.types import DROP, Candidate
from evocompress.models.families.derivation.derived import derive
from evocompress.models.families.derivation.family import Derived
from evocompress.models.loading import LoadedModel
from evocompress.models.tasks import EMBEDDINGS
from evocompress.space.costs import cost_model
from evocompress.testing.derived import typical_config, typical_loaded

IDS = torch.randint(3, 320, (4, 20), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def loaded() -> LoadedModel:
    return typical_loaded(typical_config("albert"), 7, EMBEDDINGS)


def test_layers_with_the_same_weights_are_one_block(loaded: LoadedModel) -> None:
    family, model = loaded.family, loaded.model
    assert isinstance(family, Derived) and family.calls == (2, 2, 2, 1)
    assert [unit.kind for unit in family.units(model)].count("block") == 4
    every = derive(AlbertModel, AlbertConfig())
    assert every.calls == (12,) and not every.limits
    assert all(part.settings for kind in every.kinds for part in kind.parts.values())


def test_a_block_has_parameters_once_and_operations_at_each_run(loaded: LoadedModel) -> None:
    family, model = loaded.family, loaded.model
    units = family.units(model)
    costs = cost_model(units, family.architecture(model), length=IDS.shape[1])
    assert costs.dense()["params"] == model.num_parameters()
    names = [f"{family.block_names[index]}.mlp" for index in range(4)]
    found = costs.of([Candidate(), *(Candidate(((name, DROP),)) for name in names)])
    saved = {name: values[0] - values[1:] for name, values in found.items()}
    assert saved["params"].tolist() == [saved["params"][0]] * 4
    assert (saved["flops"] / saved["flops"][3]).tolist() == [2, 2, 2, 1]


def test_statistics_are_sums_over_all_runs(loaded: LoadedModel) -> None:
    family, model = loaded.family, loaded.model
    block = family.blocks(model)[0]
    readers = {m.input: block.get_submodule(m.path) for m in family.at(0).matrices}
    needs = dict.fromkeys(readers, ("gram", "sums", "count"))
    states = HiddenStates(loaded, IDS, 2)
    with collecting(readers, needs, IDS.shape[1]) as found:
        states.run(0, keep=False)
    with collecting(readers, needs, IDS.shape[1]) as expected, torch.no_grad():
        for ids in IDS.split(2):
            family.hidden_states(model, ids)
    for word, sums in expected.items():
        assert found[word]["count"] == family.calls[0] * IDS.numel()
        for name, total in sums.items():
            torch.testing.assert_close(found[word][name], total)
