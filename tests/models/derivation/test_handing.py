"""Models run block by block whose blocks hand on keys and values, or are run several times."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CONFIG_MAPPING

from evocompress.compression.library.hidden import HiddenStates
from evocompress.compression.live_model import LiveModel
from evocompress.core.canonical import canonical
from evocompress.core.errors import ModelError
from evocompress.core.types import DENSE, DROP, Candidate, Level
from evocompress.evaluation.estimates.base import block_states
from evocompress.evaluation.proxies.layered import LayeredStates
from evocompress.evaluation.proxies.prefix import PrefixStates
from evocompress.models.backward import differentiable, read_gradients
from evocompress.models.families.base import final_states
from evocompress.models.families.derivation.derived import derive
from evocompress.models.families.derivation.family import Derived
from evocompress.models.families.derivation.from_config import language_class
from evocompress.models.families.derivation.structure import Unclear
from evocompress.models.loading import LoadedModel, load
from evocompress.models.tasks import EMBEDDINGS
from evocompress.testing.derived import SETTINGS, running_model, typical_config, typical_loaded
from evocompress.testing.plain_library import PlainLibrary
from evocompress.testing.tiny import tiny_tokenizer

BATCHES = torch.randint(3, 320, (3, 2, 20), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def loaded() -> LoadedModel:
    return typical_loaded(typical_config("gemma4_text sharing"))


@pytest.fixture(params=["gemma4_text sharing", "albert"])
def stepwise(request: pytest.FixtureRequest) -> LoadedModel:
    """A model that hands on, and one in which some of six layers share their weights."""
    name, task = request.param, EMBEDDINGS if request.param == "albert" else None
    return typical_loaded(typical_config(name), task=task)


def whole(loaded: LoadedModel, ids: Tensor) -> Tensor:
    """The hidden states by the model's own forward pass."""
    with torch.inference_mode():
        return loaded.family.hidden_states(loaded.model, ids)


def test_what_must_stay_and_why(loaded: LoadedModel) -> None:
    """The second and third block store, the last three read; nothing else is of those."""
    family = loaded.family
    assert isinstance(family, Derived) and family.handed == "shared_kv_states"
    attentions = [u for u in family.units(loaded.model) if u.kind == "attention"]
    assert [u.droppable for u in attentions] == [True, False, False, True, True, True]
    assert [u.narrowable for u in attentions] == [True, *[False] * 5]
    assert [u.attends for u in attentions] == [True, True, True, False, False, False]
    gone = "nor its attention can be dropped:"
    said = [limit for limit in family.limits if gone in limit]
    assert said == [
        f"neither block 1 {gone} 2 blocks from 3 to 4 read its keys and values",
        f"neither block 2 {gone} block 5 reads its keys and values",
    ]
    assert "heads cannot be cut where later blocks read their keys and values" in family.limits


def test_channels_of_blocks_that_read_are_twice_as_many(loaded: LoadedModel) -> None:
    channels = loaded.family.architecture(loaded.model).channels
    assert channels == (88, 88, 88, 176, 176, 176)


def test_a_model_of_fewer_layers_has_those_that_are_left_of_both() -> None:
    """As many layers read as were behind the first ones that do."""
    config = typical_config("gemma4_text sharing")
    model = typical_loaded(config, 4).model
    assert (model.config.num_hidden_layers, model.config.num_kv_shared_layers) == (4, 1)
    assert typical_loaded(config, 3).model.config.num_kv_shared_layers == 0


def random_candidates(loaded: LoadedModel, count: int) -> list[Candidate]:
    """Each with a few units of the one before at another level."""
    units, draw = loaded.family.units(loaded.model), random.Random(0)
    levels: dict[str, Level] = {}
    found = []
    for _ in range(count):
        for unit in draw.sample(units, 3):
            choices = [DENSE, DROP] if unit.droppable and unit.kind != "matrix" else [DENSE]
            choices += [Level(zeros=unit.numel // 2)] if unit.kind == "matrix" else []
            choices += [Level(channels=30)] if unit.kind == "mlp" else []
            levels[unit.name] = draw.choice(choices)
        found.append(canonical(levels, units))
    return found


def test_states_of_candidates_are_those_of_whole_passes(stepwise: LoadedModel) -> None:
    """From kept prefixes and layer by layer, on several micro-batches in turn."""
    loaded = stepwise
    batches, candidates = list(BATCHES), random_candidates(loaded, 12)
    library = PlainLibrary(loaded)
    with LiveModel(loaded, library) as live:
        prefixes, expected = PrefixStates(live, batches), []
        for candidate in candidates:
            live.apply(candidate)
            expected.append([whole(loaded, ids) for ids in batches])
            for index in range(len(batches)):
                assert torch.equal(prefixes.hidden_states(index), expected[-1][index])
    with LiveModel(loaded, library) as live:
        asks = [(candidate, [0, 2]) for candidate in candidates]
        layered = LayeredStates(live, batches).hidden_states(asks)
        for found, own in zip(layered, expected, strict=True):
            assert torch.equal(found[0], own[0]) and torch.equal(found[2], own[2])


def test_a_pass_over_all_sequences_is_that_of_each(stepwise: LoadedModel) -> None:
    """Every batch has keys and values of its own at each block, also from a later block on."""
    loaded = stepwise
    states = HiddenStates(loaded, BATCHES.flatten(0, 1), 2)
    blocks = len(loaded.family.blocks(loaded.model))
    middle: list[Tensor] = []
    for index in range(blocks):
        middle = states.current if index == blocks - 2 else middle
        states.run(index, keep=True)
    later = HiddenStates(loaded, BATCHES.flatten(0, 1), 2, middle)
    for index in range(blocks - 2, blocks):
        later.run(index, keep=True)
    for one in (states, later):
        for state, ids in zip(one.current, BATCHES, strict=True):
            final = final_states(loaded.family, loaded.model, state)
            assert torch.equal(final, whole(loaded, ids))


def test_checkpoints_may_hold_what_a_class_never_reads(tmp_path: Path) -> None:
    """The published ones of Gemma 4 have keys and values for all blocks; of nothing else."""
    model = running_model(typical_config("gemma4_text sharing"))
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    first, last = "model.layers.0.self_attn.k_proj.weight", "model.layers.5.self_attn.k_proj.weight"
    save_file(tensors | {last: tensors[first].clone()}, file, metadata={"format": "pt"})
    again = load(str(tmp_path), device="cpu").model
    found, expected = again(BATCHES[0]).logits, model(BATCHES[0]).logits
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    other = last.replace("k_proj", "r_proj")
    save_file(tensors | {other: tensors[first].clone()}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"holds {other}, for which the model"):
        load(str(tmp_path), device="cpu")


def test_streams_around_blocks_are_hidden_states(loaded: LoadedModel) -> None:
    """What estimates measure has nothing that is handed on beside it."""
    hidden = loaded.model.config.hidden_size
    for states in block_states(LiveModel(loaded), BATCHES[0]):
        assert {s.shape[-1] for s in (states.before, states.between, states.after)} == {hidden}


def gradients(loaded: LoadedModel, named: Mapping[str, Tensor], **options: bool) -> Mapping:
    found: dict[str, Tensor] = {}

    def take(name: str, gradient: Tensor) -> None:
        found[name] = gradient.clone()

    with differentiable(named):
        loss = [lambda outputs, rows: outputs.probabilities - 0.1]
        read_gradients(loaded, BATCHES[0][:1], loss, [take], **options)
    return found


def test_gradients_are_those_of_the_whole_model(stepwise: LoadedModel) -> None:
    """At once and block by block, also of keys that only later blocks read."""
    loaded, family = stepwise, stepwise.family
    path = loaded.family.layers_path
    named = {n: p for n, p in loaded.model.named_parameters() if n.startswith(path)}
    at_once = gradients(loaded, named, by_block=False)
    by_block = gradients(loaded, named, by_block=True)
    with differentiable(named), torch.enable_grad():
        states = family.task.states(family.hidden_states(loaded.model, BATCHES[0][:1]))
        outputs = family.outputs(loaded.model, states)
        weights = outputs.detach().float().softmax(-1) - 0.1
        expected = torch.autograd.grad((outputs * weights).sum(), list(named.values()))
    assert at_once.keys() == by_block.keys() == named.keys()
    for name, gradient in zip(named, expected, strict=True):
        torch.testing.assert_close(at_once[name], gradient, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(by_block[name], gradient, rtol=1e-3, atol=1e-5)


def test_a_language_model_among_several_parts_hands_on_as_well() -> None:
    text = {**SETTINGS["gemma4_text sharing"], "num_hidden_layers": 6}
    loaded = typical_loaded(CONFIG_MAPPING["gemma4"](text_config=text))
    assert isinstance(loaded.family, Derived) and loaded.family.handed == "shared_kv_states"
    states = HiddenStates(loaded, BATCHES.flatten(0, 1), 2)
    for index in range(6):
        states.run(index, keep=True)
    for state, ids in zip(states.current, BATCHES, strict=True):
        final = final_states(loaded.family, loaded.model, state)
        assert torch.equal(final, whole(loaded, ids))


def test_streams_of_hidden_states_are_refused() -> None:
    config = CONFIG_MAPPING["gemma3n_text"]()
    with pytest.raises(Unclear, match="streams"):
        derive(language_class(config), config)
