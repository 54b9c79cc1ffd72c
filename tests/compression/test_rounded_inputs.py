"""Inputs rounded token by token: the live model, checkpoints and transformers side by side."""

import math
from contextlib import ExitStack
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from evocompress.compression.library import build_library
from evocompress.compression.live_model import LiveModel
from evocompress.compression.rounded_inputs import ROUNDING, InputRounding, round_tokens
from evocompress.core.config import LibraryConfig
from evocompress.core.errors import LibraryError
from evocompress.core.types import DENSE, DROP, Candidate, Level
from evocompress.export import materialize
from evocompress.export.healed import read_candidate_model
from evocompress.models.loading import load
from evocompress.testing.tiny import tiny_checkpoint

TYPED = Level(bits="w8a8")
MLP = "model.layers.1.mlp"
CHANGES = {MLP: Level(channels=64), "model.layers.2.attention": DROP}
IDS = torch.arange(1, 30)[None]


def by_hand(row):
    """The multiples of a token's scale, one value after the other, in float64."""
    scale = np.float64(np.abs(row).max() / np.float32(127.5))
    codes = [min(max(round(float(np.float32(value / scale))), -128), 127) for value in row]
    return [code * scale for code in codes]


def test_every_token_has_a_scale_of_its_own():
    inputs = torch.randn(3, 5, 40, generator=torch.Generator().manual_seed(0))
    inputs[0] *= 1e3
    found = round_tokens(inputs)
    expected = [by_hand(row) for row in inputs.flatten(0, 1).numpy().astype(np.float32)]
    torch.testing.assert_close(
        found.flatten(0, 1).double(), torch.tensor(expected, dtype=torch.float64), atol=0, rtol=1e-5
    )
    assert round_tokens(torch.zeros(2, 4)).eq(0).all()
    assert math.isnan(round_tokens(torch.tensor([[math.nan, 1.0]]))[0, 0])


def test_inputs_that_are_not_kept_have_no_part_in_the_scale():
    inputs = torch.randn(4, 12, generator=torch.Generator().manual_seed(0))
    inputs[:, 3] = 50
    kept = torch.tensor([n for n in range(12) if n != 3])
    found = round_tokens(inputs, kept)
    torch.testing.assert_close(found[:, kept], round_tokens(inputs[:, kept]), atol=0, rtol=0)


def test_gradients_pass_the_rounding_and_tell_what_it_does():
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(12, 3, bias=False)
    inputs = torch.randn(2, 5, 12, generator=generator, requires_grad=True)
    outer = torch.randn(2, 5, 3, generator=generator)
    linear.register_forward_pre_hook(InputRounding(on=False))
    linear.register_parameter(ROUNDING, nn.Parameter(torch.zeros(1)))
    linear(inputs).backward(outer)
    gradient = torch.einsum("bso,oi->bsi", outer.double(), linear.weight.double())
    torch.testing.assert_close(inputs.grad.double(), gradient, rtol=1e-5, atol=1e-6)
    change = (round_tokens(inputs) - inputs).double()
    own = linear.get_parameter(ROUNDING).grad
    torch.testing.assert_close(own.double(), (change * gradient).sum()[None], rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(linear(inputs), inputs @ linear.weight.T)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    loaded = load(str(tiny_checkpoint(folder / "model", "llama")))
    matrices = [u.name for u in loaded.family.units(loaded.model) if u.kind == "matrix"]
    wanted = {name: [DENSE, TYPED, Level(bits="w4g32")] for name in matrices}
    wanted[MLP] = [DENSE, CHANGES[MLP]]
    tokens = torch.randint(1, 250, (8, 32), generator=torch.Generator().manual_seed(0))
    config = LibraryConfig(width_criterion="magnitude")
    library = build_library(loaded, wanted, tokens, "tokens", config, folder / "library", batch=4)
    return loaded, library, matrices


def candidate_of(matrices, changes=()):
    levels = {n: TYPED if i % 3 else Level(bits="w4g32") for i, n in enumerate(matrices)}
    gone = "model.layers.2.self_attn" if changes else "-"
    levels = {name: level for name, level in levels.items() if not name.startswith(gone)}
    return Candidate(tuple(sorted({**levels, **dict(changes)}.items())))


def logits_of(model):
    with torch.no_grad():
        return model(IDS).logits


def test_a_candidate_computes_what_its_integers_do_and_goes_again(made):
    loaded, library, matrices = made
    dense, candidate = logits_of(loaded.model), candidate_of(matrices)
    typed, read, found = [n for n, lv in candidate.levels if lv == TYPED], {}, {}
    with ExitStack() as stack:
        for name in typed:
            module = loaded.model.get_submodule(name)
            note = partial(lambda key, _, given: read.update({key: given[0]}), name)
            stack.callback(module.register_forward_pre_hook(note).remove)
        live = stack.enter_context(LiveModel(loaded, library))
        live.apply(candidate)
        for name in typed:
            module = loaded.model.get_submodule(name)
            note = partial(lambda key, _, __, made: found.update({key: made}), name)
            stack.callback(module.register_forward_hook(note).remove)
        changed = logits_of(loaded.model)
        for name in typed:
            parts = library.parts(name, TYPED)
            expected = by_integers(read[name], parts["packed"].double(), parts["scale"].double())
            torch.testing.assert_close(found[name].double(), expected, rtol=1e-4, atol=1e-5)
        live.apply(Candidate())
        assert torch.equal(logits_of(loaded.model), dense)
        live.apply(candidate)
        assert torch.equal(logits_of(loaded.model), changed)
    assert torch.equal(logits_of(loaded.model), dense) and not torch.equal(changed, dense)
    assert not any(module._forward_pre_hooks for module in loaded.model.modules())


def by_integers(inputs, integers, scales):
    """A product of integers, of which each output is multiplied by two scales."""
    scale = inputs.abs().amax(-1, keepdim=True) / 127.5
    codes = (inputs / scale).round().clamp(-128, 127).double()
    return (codes @ integers.T) * scale.double() * scales[:, 0]


def test_a_failed_apply_rounds_nothing(made):
    loaded, library, matrices = made
    dense = logits_of(loaded.model)
    first, second = sorted(matrices[:2])
    wrong = Candidate(((first, TYPED), (second, Level(bits="w2g32"))))
    live = LiveModel(loaded, library)
    with pytest.raises(LibraryError):
        live.apply(wrong)
    assert live.input_rounding(first) is None
    assert torch.equal(logits_of(loaded.model), dense)


@pytest.mark.parametrize("changes", [{}, CHANGES], ids=len)
def test_checkpoints_are_as_the_live_model(made, changes, tmp_path):
    loaded, library, matrices = made
    candidate = candidate_of(matrices, changes)
    with LiveModel(loaded, library) as live:
        live.apply(candidate)
        expected = logits_of(loaded.model)
    for form in ("hf", "folded", "padded"):
        out = materialize(loaded, library, candidate, tmp_path / form, format=form)
        found = logits_of(read_candidate_model(out, loaded))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert "is not rounded by programs that read this" in (out / "README.md").read_text()


@pytest.mark.parametrize("changes", [{}, CHANGES], ids=len)
def test_transformers_computes_the_same(made, changes, tmp_path):
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModelForCausalLM

    loaded, library, matrices = made
    candidate = candidate_of(matrices, changes)
    with LiveModel(loaded, library) as live:
        live.apply(candidate)
        expected = logits_of(loaded.model)
    form = "compressed-tensors"
    out = materialize(loaded, library, candidate, tmp_path / "out", format=form)
    model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    torch.testing.assert_close(logits_of(model), expected, rtol=1e-4, atol=1e-5)
