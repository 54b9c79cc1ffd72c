"""Candidates that are fine-tuned before they are measured, and that it is undone."""

import copy
import hashlib
from math import inf

import pytest
import torch
from safetensors.torch import load_file, save_file

from evocompress.compression.live_model import LiveModel
from evocompress.core.config import ProxyConfig
from evocompress.core.finetuning import Recipe
from evocompress.core.requests import Evaluate
from evocompress.core.types import DENSE, Candidate, Level
from evocompress.evaluation.proxies import kinds_for, make_proxy
from evocompress.healing.masters import Masters
from evocompress.healing.optimizers import BETAS
from evocompress.healing.tuned import fine_tunings, tuned
from evocompress.models.tasks import CAUSAL
from evocompress.testing import proxies as contract
from evocompress.testing.narrowing import candidate_of, mixed, state
from evocompress.testing.plain_library import PlainLibrary
from evocompress.testing.proxies import dropped, micro_batches
from evocompress.testing.tiny import tiny_loaded

FAMILIES = ("llama", "gpt2", "gemma2", "opt")
RATE = 3e-3
LENGTH = 16
# Four sequences, and one more of which seven tokens are left.
RECIPE = Recipe(4 * LENGTH + 7, RATE)
SHORT = Recipe(2 * LENGTH, RATE)
TOP_K = 20


class MappedLibrary:
    """A library whose tensors are memory-mapped files and always the same objects."""

    def __init__(self, loaded, folder):
        self._made = PlainLibrary(loaded)
        self._folder = folder
        self.entries = {}

    def load(self, unit, level, width=DENSE):
        key = f"{unit} {level.key} {width.key}"
        if key not in self.entries:
            save_file(self._made.load(unit, level, width), self._folder / key)
            self.entries[key] = load_file(self._folder / key)
        return self.entries[key]

    def digests(self):
        """What is in memory and in the files."""
        tensors = {
            f"{key} {name}": tensor.clone()
            for key, entry in self.entries.items()
            for name, tensor in entry.items()
        }
        return tensors, [
            hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(self._folder.iterdir())
        ]


def lessons_of(loaded, count=3):
    """Sequences to train on: fewer than the recipes ask for."""
    generator = torch.Generator().manual_seed(5)
    return torch.randint(loaded.model.config.vocab_size, (count, LENGTH), generator=generator)


def sparse(loaded):
    """A candidate with zeros, narrow sub-layers and a dropped one."""
    name = f"{loaded.family.layers_path}.0.{loaded.family.output('mlp').path}"
    return candidate_of(mixed(loaded) | {name: Level(zeros=900)})


def proxy_of(kind, live, sequences, *recipes):
    treatments = fine_tunings(live.loaded, sequences, recipes)
    return make_proxy(
        live, micro_batches(live.loaded), ProxyConfig(kind=kind, top_k=TOP_K), treatments
    )


def plainly_tuned(model, sequences, tokens):
    """A copy, trained by torch's own optimizer on the loss that transformers computes."""
    student = copy.deepcopy(model)
    student.requires_grad_(True)
    zeros = {name: p.detach() == 0 for name, p in student.named_parameters() if p.ndim == 2}
    optimizer = torch.optim.AdamW(student.parameters(), lr=RATE, betas=BETAS, weight_decay=0.0)
    stream = sequences.repeat(-(-tokens // sequences.numel()), 1).flatten()[:tokens]
    for ids in stream.split(sequences.shape[1]):
        optimizer.zero_grad()
        student(ids[None], labels=ids[None], use_cache=False).loss.backward()
        optimizer.step()
        with torch.no_grad():
            for name, parameter in student.named_parameters():
                if name in zeros:
                    parameter[zeros[name]] = 0
    return student


def plain_value(kind, dense, student, ids):
    """The sums of the sequences by the brute-force proxy."""
    reference = contract.REFERENCES[kind]
    given = [
        contract.plain_outputs(CAUSAL, model, ids, reference.of_states).clone()
        for model in (dense, student)
    ]
    rows = zip(*given, ids, strict=True)
    return [float(reference.values(*row, TOP_K).sum()) for row in rows]


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("kind", kinds_for(CAUSAL))
def test_values_are_those_of_a_plain_training(kind, model_type, tmp_path):
    loaded = tiny_loaded(model_type)
    sequences, candidate = lessons_of(loaded), sparse(loaded)
    with LiveModel(loaded, MappedLibrary(loaded, tmp_path)) as live:
        live.apply(candidate)
        before = copy.deepcopy(loaded.model)
        proxy = proxy_of(kind, live, sequences, RECIPE)
        request = RECIPE.before(Evaluate(candidate, (2, 0)))
        [result] = proxy.evaluate([request])
    assert result.request == request
    student = plainly_tuned(before, sequences, RECIPE.tokens)
    for value in result.values:
        ids = micro_batches(loaded)[value.micro_batch]
        trained, untrained = (
            torch.tensor(plain_value(kind, loaded.model, model, ids)) for model in (student, before)
        )
        torch.testing.assert_close(torch.tensor(value.sums), trained, rtol=2e-4, atol=2e-4)
        assert (trained - untrained).abs().max() > 0.002 * untrained.max()


def test_everything_is_put_back_bit_for_bit(tmp_path):
    loaded = tiny_loaded()
    library = MappedLibrary(loaded, tmp_path)
    with LiveModel(loaded, library) as live:
        live.apply(sparse(loaded))
        held, stored = state(loaded.model), library.digests()
        values = {name: p.clone() for name, p in loaded.model.named_parameters()}
        with tuned(loaded, lessons_of(loaded), RECIPE):
            moved = {
                name for name, p in loaded.model.named_parameters() if (p != values[name]).any()
            }
            pointers = {p.data_ptr() for p in loaded.model.parameters()}
        assert moved == values.keys()
        assert not pointers & {p.data_ptr() for p in loaded.model.parameters()}
        assert state(loaded.model) == held
        for name, parameter in loaded.model.named_parameters():
            assert torch.equal(parameter, values[name])
            assert parameter.grad is None and not parameter.requires_grad
        tensors, files = library.digests()
        assert files == stored[1]
        assert all(torch.equal(tensor, stored[0][key]) for key, tensor in tensors.items())


def test_zeros_stay_zero(tmp_path):
    loaded = tiny_loaded()
    name = f"{loaded.family.layers_path}.0.{loaded.family.output('mlp').path}"
    with LiveModel(loaded, MappedLibrary(loaded, tmp_path)) as live:
        live.apply(candidate_of({name: Level(zeros=900)}))
        weight = loaded.model.get_parameter(f"{name}.weight")
        zeros = weight == 0
        with tuned(loaded, lessons_of(loaded), RECIPE):
            assert torch.equal(weight == 0, zeros)
        assert zeros.sum() == 900


@pytest.mark.parametrize("kind", kinds_for(CAUSAL))
def test_company_does_not_matter(kind, tmp_path):
    """Neither tuned nor untuned states are served to another request."""
    loaded = tiny_loaded()
    one, other = sparse(loaded), dropped(loaded, "2.mlp")
    plain = [Evaluate(one, (0, 1)), Evaluate(other, (1, 2)), Evaluate(one, (2, 0))]
    requests = [
        treated
        for request in plain
        for treated in (request, RECIPE.before(request), SHORT.before(request), request)
    ]
    with LiveModel(loaded, MappedLibrary(loaded, tmp_path)) as live:
        together = proxy_of(kind, live, lessons_of(loaded), RECIPE, SHORT).evaluate(requests)
        for request, result in zip(requests, together, strict=True):
            alone = proxy_of(kind, live, lessons_of(loaded), RECIPE, SHORT)
            assert alone.evaluate([request]) == [result]
    means = [result.mean for result in together[:3]]
    assert len(set(means)) == 3


def test_a_treatment_that_is_not_known_is_refused():
    loaded = tiny_loaded()
    with LiveModel(loaded) as live:
        proxy = proxy_of("kl", live, lessons_of(loaded), RECIPE)
        with pytest.raises(ValueError, match=f"treatment '{SHORT.treatment}'"):
            proxy.evaluate([SHORT.before(Evaluate(Candidate(), (0,)))])


def test_a_training_that_goes_wrong_is_a_failed_result(monkeypatch):
    loaded = tiny_loaded()
    good, wild = Evaluate(dropped(loaded, "1.mlp"), (0,)), Recipe(3 * LENGTH, 1e30)
    held = state(loaded.model)
    with LiveModel(loaded) as live:
        proxy = proxy_of("kl", live, lessons_of(loaded), wild, SHORT)
        [before] = proxy.evaluate([SHORT.before(good)])
        bad, after = proxy.evaluate([wild.before(good), SHORT.before(good)])
        assert "is nan" in bad.failed and bad.mean == inf
        assert after == before
        monkeypatch.setattr(Masters, "step", _out_of_memory)
        [short] = proxy.evaluate([SHORT.before(good)])
        assert short.failed == "out of memory"
        monkeypatch.undo()
        assert proxy.evaluate([SHORT.before(good)]) == [before]
    assert state(loaded.model) == held


def test_an_error_of_another_kind_is_not_hidden_and_undone(monkeypatch):
    loaded = tiny_loaded()
    held = state(loaded.model)
    with LiveModel(loaded) as live:
        proxy = proxy_of("kl", live, lessons_of(loaded), SHORT)
        monkeypatch.setattr(Masters, "step", _wrong)
        with pytest.raises(RuntimeError, match="shapes"):
            proxy.evaluate([SHORT.before(Evaluate(dropped(loaded, "1.mlp"), (0,)))])
    assert state(loaded.model) == held


def test_bfloat16_moves_by_steps_that_it_could_not_take_alone():
    """A hundred steps at the published rate: each is below half a unit of most weights."""
    loaded = tiny_loaded(dtype=torch.bfloat16)
    weight = loaded.model.get_parameter("model.layers.0.mlp.up_proj.weight")
    before = weight.clone()
    with tuned(loaded, lessons_of(loaded), Recipe(100 * LENGTH)):
        share = (weight != before).float().mean()
        assert share > 0.3


def test_the_name_of_a_treatment_is_made_of_the_recipe():
    names = {recipe.treatment for recipe in (RECIPE, SHORT, Recipe(2 * LENGTH), Recipe(9))}
    assert len(names) == 4
    assert SHORT.treatment == Recipe(2 * LENGTH, RATE).treatment
    # It is in journals: other code must not give it another name.
    assert Recipe(10_000).treatment == "b7f96ca7686dbbee"


def _out_of_memory(*_):
    raise torch.OutOfMemoryError("CUDA out of memory")


def _wrong(*_):
    raise RuntimeError("shapes do not match")
