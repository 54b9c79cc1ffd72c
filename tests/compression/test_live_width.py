"""Narrow, narrow and sparse, and merged candidates in the live model; see `test_apply` too."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from evocompress.compression import live_model
from evocompress.compression.live_model import LiveModel
from evocompress.compression.weights import Form, WeightSource, form_of
from evocompress.core.errors import LibraryError
from evocompress.core.types import DROP, Candidate, Level
from evocompress.models.loading import loaded as make_loaded
from evocompress.testing.narrowing import candidate_of, merged, mixed, reference, way, widths
from evocompress.testing.plain_library import PlainLibrary
from evocompress.testing.probes import random_ids
from evocompress.testing.tiny import tiny_loaded, tiny_tokenizer


class World:
    """A tiny model with a library in memory that notes what is loaded."""

    def __init__(self, loaded):
        self.loaded = loaded
        self.library = PlainLibrary(loaded)
        self.path = loaded.family.layers_path
        self.loads = []
        load = self.library.load
        self.library.load = lambda *args: self.loads.append(args[0]) or load(*args)

    def parameters(self):
        return dict(self.loaded.model.named_parameters())

    def logits(self):
        return self.loaded.model(random_ids()).logits

    def matrices(self, sublayer):
        """Names of a sub-layer's matrix units."""
        units = self.library.units.values()
        return [u.name for u in units if (u.parent, u.kind) == (sublayer, "matrix")]


@pytest.fixture(params=["llama", "phi3", "gpt2", "opt"])
def world(request):
    return World(tiny_loaded(request.param))


@pytest.fixture
def llama():
    return World(tiny_loaded("llama"))


def narrow_and_sparse(world):
    """The last block's sub-layers narrow, and half of each of their matrices zero."""
    levels = {
        f"{world.path}.2.attention": Level(kv_groups=1, group_heads=1, bias=True),
        f"{world.path}.2.mlp": Level(channels=24),
    }
    for unit in world.library.units.values():
        if unit.parent in levels and unit.kind == "matrix":
            levels = levels | {unit.name: Level(zeros=unit.numel // 2)}
    return levels


def test_several_heads_of_several_groups():
    config = AutoConfig.for_model(
        "llama",
        vocab_size=256,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=12,
        num_key_value_heads=3,
        intermediate_size=40,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    world = World(make_loaded(model, tiny_tokenizer(), "tiny"))
    levels = widths(world.loaded.family.architecture(model), "attention", bias=False)
    assert len(levels) == 11
    for level in levels:
        changes = {f"{world.path}.1.attention": level}
        expected = reference(world.loaded, world.library, changes)(random_ids()).logits
        with LiveModel(world.loaded, world.library) as live:
            live.apply(candidate_of(changes))
            torch.testing.assert_close(world.logits(), expected, rtol=1e-4, atol=1e-4)


def test_narrow_and_sparse_matrices_are_the_library_s(world):
    levels = narrow_and_sparse(world)
    with LiveModel(world.loaded, world.library) as live:
        live.apply(candidate_of(levels))
        parameters = world.parameters()
        for name, level in levels.items():
            unit = world.library.units[name]
            if unit.kind == "matrix":
                stored = world.library.load(name, level, levels[unit.parent])["weight"]
                weight = parameters[f"{name}.weight"]
                assert torch.equal(weight, stored)
                assert weight.numel() < unit.numel
                zeros = level.zeros * weight.numel() // unit.numel
                assert int((weight == 0).sum()) == zeros
        assert world.logits().isfinite().all()


def test_cuts_are_kept_as_long_as_there_is_room(world, monkeypatch):
    levels = {f"{world.path}.{block}.mlp": Level(channels=24) for block in range(3)}
    names = [f"{name}.weight" for sublayer in levels for name in world.matrices(sublayer)]
    for room, kept in ((2**20, True), (0, False)):
        monkeypatch.setattr(live_model, "CUT_BYTES", room)
        with LiveModel(world.loaded, world.library) as live:
            live.apply(candidate_of(levels))
            first = [world.parameters()[name].data for name in names]
            logits = world.logits()
            live.restore()
            live.apply(candidate_of(levels))
            again = [world.parameters()[name].data for name in names]
            assert torch.equal(world.logits(), logits)
        same = [a.data_ptr() == b.data_ptr() for a, b in zip(first, again, strict=True)]
        assert all(same) if kept else not all(same)


def test_a_source_gives_what_the_live_model_has(world):
    """`WeightSource.tensors` of narrow, sparse and merged matrices are those put in place."""
    dense = {name: parameter.data for name, parameter in world.parameters().items()}
    source = WeightSource(world.loaded, dense, world.library)
    narrow, merging = narrow_and_sparse(world), merged(world.loaded, 2)
    with LiveModel(world.loaded, world.library) as live:
        for block, levels in ((2, narrow), (0, merging)):
            live.apply(candidate_of(levels))
            name = f"{world.path}.{block}"
            tensors = {}
            for matrix in world.loaded.family.matrices:
                tensors |= source.tensors(block, matrix, form_of(name, matrix, levels))
            names = world.matrices(f"{name}.attention") + world.matrices(f"{name}.mlp")
            assert_in_place(world, tensors, names)


def test_the_form_of_a_matrix(llama):
    query, down = (llama.loaded.family.matrices[index] for index in (0, -1))
    narrow, sparse = Level(channels=24), Level(zeros=5)
    levels = {
        "b.attention": DROP,
        f"b.{query.path}": sparse,
        "b.mlp": narrow,
        f"b.{down.path}": sparse,
        "c": Level(merge=2),
    }
    assert form_of("b", query, levels) == Form(), "dropped with its sub-layer"
    assert form_of("b", down, levels) == Form(sparse, width=narrow)
    assert form_of("c", down, levels) == Form(merge=2)
    assert form_of("d", down, levels) == Form()


def assert_in_place(world, tensors, matrices):
    """The tensors are all the parameters of the named modules, by value and type."""
    parameters = world.parameters()
    of_matrices = {name for name in parameters if name.rpartition(".")[0] in matrices}
    assert set(tensors) == of_matrices
    assert all(torch.equal(tensors[name], parameters[name]) for name in tensors)


def test_types_are_kept():
    world = World(tiny_loaded("llama", dtype=torch.bfloat16))
    with LiveModel(world.loaded, world.library) as live:
        for levels in way(world.loaded):
            live.apply(candidate_of(levels))
            assert {p.dtype for p in world.parameters().values()} == {torch.bfloat16}
            assert not any(p.requires_grad for p in world.parameters().values())


def test_a_merge_is_summed_in_float32():
    world = World(tiny_loaded("llama", dtype=torch.bfloat16))
    name = f"{world.path}.{{}}.mlp.down_proj.weight"
    first, second, third = (world.parameters()[name.format(i)].data.double() for i in range(3))
    exact = first + (second - first) + (third - first)
    with LiveModel(world.loaded) as live:
        live.apply(candidate_of(merged(world.loaded, 2)))
        assert torch.equal(world.parameters()[name.format(0)], exact.float().bfloat16())


def test_only_what_differs_is_loaded(llama):
    levels = narrow_and_sparse(llama)
    with LiveModel(llama.loaded, llama.library) as live:
        live.apply(candidate_of(levels))
        llama.loads.clear()
        other = f"{llama.path}.2.mlp.up_proj"
        live.apply(candidate_of(levels | {other: Level(zeros=7)}))
        assert set(llama.loads) == {other, f"{llama.path}.2.mlp"}
        llama.loads.clear()
        live.apply(candidate_of(levels | {f"{llama.path}.0.mlp": DROP, other: Level(zeros=7)}))
        assert not llama.loads


def test_the_rest_of_the_model_is_not_touched(llama):
    before = {name: parameter.data_ptr() for name, parameter in llama.parameters().items()}
    with LiveModel(llama.loaded, llama.library) as live:
        live.apply(candidate_of({f"{llama.path}.1.mlp": Level(channels=9)}))
        after = {name: parameter.data_ptr() for name, parameter in llama.parameters().items()}
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {f"{name}.weight" for name in llama.matrices(f"{llama.path}.1.mlp")}


def bad_levels(path):
    return {
        "can only be dropped, narrowed": {f"{path}.2.mlp": Level(kv_groups=1, group_heads=1)},
        "or dense, not channels=3": {f"{path}.2.attention": Level(channels=3)},
        "is a block": {f"{path}.2": DROP},
        "there are fewer": {f"{path}.2": Level(merge=1)},
        "cannot be made sparse or narrow": {
            f"{path}.1": Level(merge=1),
            f"{path}.1.mlp.up_proj": Level(zeros=5),
        },
        "merged with those": {f"{path}.1": Level(merge=1), f"{path}.1.mlp": Level(channels=5)},
        "stores no zeros": {f"{path}.2.mlp.up_proj": Level(zeros=10**9)},
    }


def test_a_failed_apply_changes_nothing(world):
    valid = mixed(world.loaded)
    with LiveModel(world.loaded, world.library) as live:
        live.apply(candidate_of(valid))
        logits = world.logits()
        change = {f"{world.path}.0.mlp": Level(channels=11), f"{world.path}.0.attention": DROP}
        for words, levels in usable(world, bad_levels(world.path)).items():
            with pytest.raises(LibraryError, match=words):
                live.apply(candidate_of(change | levels))
            assert live.current == candidate_of(valid)
            assert torch.equal(world.logits(), logits)


def usable(world, levels_by_words):
    """Those candidates whose units the family has; fused families have no ``up_proj``."""
    return {
        words: levels
        for words, levels in levels_by_words.items()
        if levels.keys() <= world.library.units.keys()
    }


def test_widths_need_a_library_but_merges_do_not(llama):
    with LiveModel(llama.loaded) as live:
        live.apply(candidate_of(merged(llama.loaded, 1)))
        with pytest.raises(LibraryError, match=r"2.mlp at channels=5 needs a level library"):
            live.apply(candidate_of({f"{llama.path}.2.mlp": Level(channels=5)}))
    assert live.current == Candidate()
