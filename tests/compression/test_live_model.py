"""Candidates in the live model against copies that are edited by hand."""

import copy

import pytest
import torch

from evocompress.compression import live_model
from evocompress.compression.library import build_library
from evocompress.compression.live_model import LiveModel
from evocompress.core.cache import Cache
from evocompress.core.config import LibraryConfig
from evocompress.core.errors import LibraryError
from evocompress.core.types import DENSE, DROP, Candidate, Level
from evocompress.testing.tiny import tiny_loaded

FAMILIES = ["llama", "gpt2", "opt", "gemma3_text"]


class World:
    """A tiny model, its library, and the logits of the dense model."""

    def __init__(self, model_type, path):
        self.loaded = tiny_loaded(model_type)
        self.units = self.loaded.family.units(self.loaded.model)
        self.matrices = [unit for unit in self.units if unit.kind == "matrix"]
        wanted = {u.name: [Level(u.numel // 2), Level(u.numel * 3 // 4)] for u in self.matrices}
        self.ids = torch.randint(1, 256, (2, 12), generator=torch.Generator().manual_seed(0))
        self.library = build_library(
            self.loaded, wanted, self.ids, "tokens", LibraryConfig(), path, batch=2
        )
        self.dense = self.logits()

    def logits(self, model=None):
        with torch.no_grad():
            return (model or self.loaded.model)(self.ids).logits

    def candidate(self, **levels):
        """A candidate from matrices by position and sub-layers by kind and block."""
        named = {}
        for key, level in levels.items():
            kind, index = key.split("_")
            of_kind = [unit for unit in self.units if unit.kind == kind]
            named[of_kind[int(index)].name] = level
        return Candidate(tuple(sorted(named.items())))

    def expected(self, candidate):
        """Logits of a copy with weights copied in and the outputs of dropped branches zeroed."""
        model = copy.deepcopy(self.loaded.model)
        blocks = {unit.name: unit.block for unit in self.units}
        for name, level in candidate.levels:
            if level.drop:
                block = self.loaded.family.blocks(model)[blocks[name]]
                silence(block, self.loaded.family, name.rsplit(".", 1)[1])
            else:
                weight = self.library.load(name, level)["weight"]
                model.get_parameter(f"{name}.weight").copy_(weight)
        return self.logits(model)


def silence(block, family, sublayer):
    """Zero what a branch adds: the last matrix, its bias, or the norm after it."""
    branch = getattr(family, sublayer)
    last = block.get_submodule(branch.matrices[-1].path)
    after = [
        path
        for path in branch.identity_modules
        if path.startswith("post_") and len(branch.identity_modules) > 1
    ]
    for parameter in last.parameters():
        parameter.zero_()
    for path in after:
        block.get_submodule(path).register_forward_hook(lambda m, a, out: torch.zeros_like(out))


@pytest.fixture(scope="module", params=FAMILIES)
def world(request, tmp_path_factory):
    return World(request.param, tmp_path_factory.mktemp("library"))


def half(world, position):
    return Level(world.matrices[position].numel // 2)


def candidates(world):
    """Weights, drops and both, so that every transition between kinds occurs."""
    return [
        world.candidate(matrix_0=half(world, 0), matrix_3=half(world, 3)),
        world.candidate(attention_1=DROP),
        world.candidate(mlp_1=DROP, matrix_0=half(world, 0)),
        world.candidate(attention_0=DROP, mlp_0=DROP, attention_2=DROP),
        world.candidate(matrix_0=Level(world.matrices[0].numel * 3 // 4), mlp_2=DROP),
    ]


def test_a_candidate_computes_what_an_edited_copy_computes(world):
    wished = [(candidate, world.expected(candidate)) for candidate in candidates(world)]
    with LiveModel(world.loaded, world.library) as live:
        for candidate, expected in wished:
            live.apply(candidate)
            assert live.current == candidate
            torch.testing.assert_close(world.logits(), expected)


def test_restore_gives_the_very_same_model(world):
    modules = dict(world.loaded.model.named_modules())
    pointers = {n: (p, p.data_ptr()) for n, p in world.loaded.model.named_parameters()}
    with LiveModel(world.loaded, world.library) as live:
        for candidate in candidates(world):
            live.apply(candidate)
        assert not torch.equal(world.logits(), world.dense)
    assert {n: (p, p.data_ptr()) for n, p in world.loaded.model.named_parameters()} == pointers
    after = dict(world.loaded.model.named_modules())
    assert list(after) == list(modules) and all(after[n] is modules[n] for n in modules)
    assert torch.equal(world.logits(), world.dense)


def test_the_way_to_a_candidate_does_not_matter(world):
    target = candidates(world)[2]
    with LiveModel(world.loaded, world.library) as live:
        live.apply(target)
        direct = world.logits()
        for candidate in candidates(world):
            live.apply(candidate)
        live.apply(target)
        assert torch.equal(world.logits(), direct)


def test_only_differences_are_swapped(world, monkeypatch):
    loads = []
    original = world.library.load
    monkeypatch.setattr(
        world.library, "load", lambda unit, level: loads.append(unit) or original(unit, level)
    )
    with LiveModel(world.loaded, world.library) as live:
        live.apply(world.candidate(matrix_0=half(world, 0), matrix_3=half(world, 3)))
        loads.clear()
        live.apply(world.candidate(matrix_0=half(world, 0), matrix_2=half(world, 2)))
        assert loads == [world.matrices[2].name]


def test_weights_are_the_library_s_memory(world):
    unit = world.matrices[0]
    with LiveModel(world.loaded, world.library) as live:
        live.apply(world.candidate(matrix_0=half(world, 0)))
        parameter = world.loaded.model.get_parameter(f"{unit.name}.weight")
        stored = world.library.load(unit.name, half(world, 0))["weight"]
        assert parameter.data_ptr() == stored.data_ptr()


class Elsewhere:
    """A library on another device, as far as a CPU can have one: of another type."""

    def __init__(self, library):
        self._library = library
        self.loads = 0

    def load(self, unit, level, width=DENSE):
        self.loads += 1
        return {part: t.double() for part, t in self._library.load(unit, level, width).items()}


def test_copies_of_levels_are_kept_as_long_as_there_is_room(world, monkeypatch):
    sizes = [unit.numel * 4 for unit in world.matrices]
    cache = Cache(sizes[0] + sizes[3])
    monkeypatch.setattr(live_model, "_copies", lambda loaded: cache)
    one, other = world.candidate(matrix_0=half(world, 0)), world.candidate(matrix_3=half(world, 3))
    names = [f"{world.matrices[place].name}.weight" for place in (0, 3)]
    library = Elsewhere(world.library)
    with LiveModel(world.loaded, library) as live:
        found = []
        for candidate in (one, other, one, other):
            live.apply(candidate)
            found.append([world.loaded.model.get_parameter(name).data_ptr() for name in names])
            assert torch.equal(world.logits(), world.expected(candidate))
        assert found[:2] == found[2:]
        assert library.loads == 2
        assert cache.bytes == cache.limit
        live.apply(world.candidate(matrix_1=half(world, 1)))
        assert cache.bytes <= cache.limit


def bad_candidates(world):
    return {
        "stores no zeros=1": world.candidate(matrix_0=half(world, 0), matrix_3=Level(zeros=1)),
        "no unit nonsense": Candidate((("nonsense", Level(zeros=1)),)),
        "can only be dropped": world.candidate(mlp_0=Level(zeros=3), matrix_0=half(world, 0)),
        "is a block": world.candidate(block_0=DROP),
    }


def test_a_failed_apply_changes_nothing(world):
    with LiveModel(world.loaded, world.library) as live:
        before = candidates(world)[2]
        live.apply(before)
        logits = world.logits()
        for words, candidate in bad_candidates(world).items():
            with pytest.raises(LibraryError, match=words):
                live.apply(candidate)
            assert live.current == before and torch.equal(world.logits(), logits)
    assert torch.equal(world.logits(), world.dense)


def test_an_exception_inside_restores(world):
    with pytest.raises(RuntimeError), LiveModel(world.loaded, world.library) as live:
        live.apply(candidates(world)[4])
        raise RuntimeError
    assert torch.equal(world.logits(), world.dense)


def test_drops_need_no_library_but_weights_do(world):
    with LiveModel(world.loaded) as live:
        live.apply(world.candidate(mlp_0=DROP))
        assert not torch.equal(world.logits(), world.dense)
        with pytest.raises(LibraryError, match="needs a level library"):
            live.apply(world.candidate(matrix_0=half(world, 0)))
