"""Shared prefixes: bit-identical values, no block too many, and memory within the limit."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import ceil

import pytest
import torch
from tiers import by_tier

from evocompress.compression.live_model import LiveModel
from evocompress.core.canonical import canonical
from evocompress.core.config import ProxyConfig
from evocompress.core.requests import Evaluate, Result
from evocompress.core.types import DENSE, DROP, Candidate, Level, Unit
from evocompress.evaluation.proxies import PROXIES, Proxy, make_proxy, prefix
from evocompress.evaluation.proxies.prefix import PrefixStates, Stream, tensors
from evocompress.models.loading import LoadedModel
from evocompress.testing.families import SUBLAYERS
from evocompress.testing.narrowing import candidate_of, merged, widths
from evocompress.testing.plain_library import PlainLibrary
from evocompress.testing.proxies import dropped, micro_batches
from evocompress.testing.tiny import DECODERS, ENCODERS, tiny_loaded

LAYERS = 5
DTYPES = (torch.float32, torch.bfloat16)
OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory")

Levels = dict[str, Level]


class World:
    """A tiny model that notes which blocks are run."""

    def __init__(self, model_type: str = "llama", dtype: torch.dtype = torch.float32) -> None:
        self.loaded: LoadedModel = tiny_loaded(model_type, layers=LAYERS, dtype=dtype)
        self.live = LiveModel(self.loaded, PlainLibrary(self.loaded))
        self.batches = micro_batches(self.loaded)
        self.states = PrefixStates(self.live, self.batches)
        self.path = self.loaded.family.layers_path
        self.ran: list[int] = []
        for index, block in enumerate(self.loaded.family.blocks(self.loaded.model)):
            block.register_forward_hook(lambda *_, index=index: self.ran.append(index))

    def run(self, candidate: Candidate, micro_batch: int) -> list[int]:
        """Checks the states of a candidate against a plain forward pass; the blocks it took."""
        self.live.apply(candidate)
        self.ran.clear()
        states, ran = self.states.hidden_states(micro_batch), self.ran.copy()
        family, model = self.loaded.family, self.loaded.model
        with torch.inference_mode():
            assert torch.equal(states, family.hidden_states(model, self.batches[micro_batch]))
        return ran

    def without(self, *names: str) -> Candidate:
        return dropped(self.loaded, *names)


class Mutations:
    """Random candidates, most of which change a few units of the one before."""

    def __init__(self, world: World) -> None:
        self._loaded = world.loaded
        self._architecture = self._loaded.family.architecture(self._loaded.model)
        self._units = list(world.live.units.values())
        self._rng = random.Random(0)
        self._levels: Levels = {}

    def draw(self) -> Candidate:
        kind = self._rng.choice(["change", "change", "change", "fresh", "merge", "dense"])
        if kind == "merge":
            return candidate_of(merged(self._loaded, self._rng.choice([1, 2])))
        if kind == "dense":
            return Candidate()
        if kind == "fresh":
            self._levels = {}
        for unit in self._rng.sample(self._units, self._rng.randint(1, 3)):
            self._levels[unit.name] = self._rng.choice(self._choices(unit))
        return canonical(self._levels, self._units)

    def _choices(self, unit: Unit) -> list[Level]:
        if unit.kind == "block":
            return [DENSE]
        if unit.kind == "cache":
            return [DENSE, Level(cache="kv4"), Level(cache="kv2")]
        if unit.kind == "outer":
            return [DENSE, Level(bits="q8_0"), Level(bits="q4_0")]
        if unit.kind == "matrix":
            return [DENSE, Level(zeros=unit.numel // 3), Level(zeros=unit.numel // 2)]
        if unit.kind == "expert":
            # A token uses two, which are kept.
            return [DENSE, DROP] if unit.name.endswith((".0", ".1")) else [DENSE]
        bias = self._rng.random() < 0.5 and self._loaded.family.mixture is None
        return [DENSE, DROP, *widths(self._architecture, unit.kind, bias=bias)]


@pytest.fixture
def world() -> World:
    return World()


@contextmanager
def failing(world: World, block: int, error: Exception) -> Iterator[None]:
    """A block that cannot be run."""

    def fail(*_: object) -> None:
        raise error

    handle = world.loaded.family.blocks(world.loaded.model)[block].register_forward_pre_hook(fail)
    yield
    handle.remove()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model_type", [*by_tier(DECODERS), *ENCODERS])
def test_states_are_those_of_a_plain_pass(model_type: str, dtype: torch.dtype) -> None:
    world = World(model_type, dtype)
    mutations, rng = Mutations(world), random.Random(1)
    ran: list[int] = []
    with world.live:
        for _ in range(25):
            candidate = mutations.draw()
            for micro_batch in rng.sample(range(3), 2):
                ran.append(len(world.run(candidate, micro_batch)))
    assert {0, LAYERS} < set(ran)


@pytest.mark.parametrize("block", range(LAYERS))
@pytest.mark.parametrize(
    "change",
    [
        {"attention": DROP},
        {"mlp": DROP},
        {"attention": DROP, "mlp": DROP},
        {"attention": Level(kv_groups=1, group_heads=2)},
        {"mlp": Level(channels=9)},
        {"mlp.up_proj": Level(zeros=77)},
    ],
)
def test_blocks_before_the_first_difference_are_not_run(
    world: World, change: Levels, block: int
) -> None:
    common = {f"{world.path}.{i}.mlp.down_proj": Level(zeros=500) for i in (1, 3)}
    neighbour = common | {f"{world.path}.{block}.{name}": level for name, level in change.items()}
    one, other = (canonical(x, list(world.live.units.values())) for x in (common, neighbour))
    everything, rest = list(range(LAYERS)), list(range(block, LAYERS))
    with world.live:
        assert world.run(one, 0) == everything
        assert world.run(other, 0) == rest
        assert world.run(other, 1) == everything
        assert world.run(one, 1) == rest


def test_a_merge_differs_from_its_first_block_on(world: World) -> None:
    merge = {f"{world.path}.1": Level(merge=1)}
    drop = {f"{world.path}.2.{sublayer}": DROP for sublayer in SUBLAYERS}
    with world.live:
        world.run(candidate_of(drop), 0)
        assert world.run(candidate_of(merge | drop), 0) == [1, 2, 3, 4]
        assert world.run(candidate_of(drop), 0) == [1, 2, 3, 4]


def test_the_same_candidate_runs_no_block_again_and_neither_does_the_dense_model(
    world: World,
) -> None:
    with world.live:
        for candidate in (world.without("2.mlp"), Candidate()):
            world.run(candidate, 0)
            assert world.run(candidate, 0) == []


@pytest.mark.parametrize("block", range(1, LAYERS))
def test_a_failure_within_a_pass_leaves_what_is_true(world: World, block: int) -> None:
    one, other = world.without("4.mlp"), world.without("1.mlp")
    with world.live:
        world.run(one, 0)
        world.live.apply(other)
        with failing(world, block, OUT_OF_MEMORY), pytest.raises(torch.OutOfMemoryError):
            world.states.hidden_states(0)
        assert world.run(other, 0) == list(range(block, LAYERS))
        assert world.run(one, 0) == [1, 2, 3, 4]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", sorted(PROXIES.built_in))
def test_values_do_not_depend_on_what_is_kept(
    kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a candidate fails, and where new micro-batches need the dense model between."""
    results = []
    for limit in (0, prefix.LIMIT_BYTES):
        monkeypatch.setattr(prefix, "LIMIT_BYTES", limit)
        world = World(dtype=dtype)
        mutations = Mutations(world)
        with world.live:
            proxy = make_proxy(world.live, world.batches, ProxyConfig(kind=kind, top_k=20))
            answers = evaluated(proxy, mutations, (0,))
            with failing(world, 3, OUT_OF_MEMORY):
                answers += evaluated(proxy, mutations, (0,), count=1)
            answers += evaluated(proxy, mutations, (2, 0))
        results.append((answers, len(world.ran)))
    (plain, passes), (shared, fewer) = results
    assert shared == plain
    assert [answer.failed for answer in plain] == [None] * 8 + ["out of memory"] + [None] * 8
    assert fewer < passes


def evaluated(
    proxy: Proxy, mutations: Mutations, micro_batches: tuple[int, ...], count: int = 8
) -> list[Result]:
    """Results of random candidates, asked one by one as an executor does."""
    requests = [Evaluate(mutations.draw(), micro_batches) for _ in range(count)]
    return [proxy.evaluate([request])[0] for request in requests]


def test_a_candidate_without_memory_leaves_nothing_behind(world: World) -> None:
    with world.live:
        proxy = make_proxy(world.live, world.batches, ProxyConfig())
        request = Evaluate(world.without("1.mlp"), (0,))
        [good] = proxy.evaluate([request])
        with failing(world, 2, OUT_OF_MEMORY):
            assert proxy.evaluate([Evaluate(world.without("0.mlp"), (0,))])[0].failed
        assert proxy._prefixes.nbytes == 0
        world.ran.clear()
        assert proxy.evaluate([request]) == [good]
        assert world.ran == list(range(LAYERS))


@pytest.mark.parametrize("every", [1, 2, 3, LAYERS])
@pytest.mark.parametrize("model_type", [*by_tier(DECODERS), *ENCODERS])
def test_bytes_are_those_of_everything_kept(model_type: str, every: int) -> None:
    loaded = tiny_loaded(model_type, layers=LAYERS)
    loaded.model.set_attn_implementation("eager")
    hidden, arguments = loaded.family.block_inputs(loaded.model, micro_batches(loaded)[0])
    stream = Stream(arguments, {0: hidden}, every)
    promised = stream.nbytes
    stream.run(loaded.family.blocks(loaded.model), [()] * LAYERS)
    held = [tensor.untyped_storage() for tensor in tensors([stream.states, stream.arguments])]
    assert promised == sum({s.data_ptr(): s.nbytes() for s in held}.values())
    assert len(stream.states) == 1 + ceil(LAYERS / every)


def limited(world: World, monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """A limit in units of the bytes of micro-batch 0, with which 1 is equal and 2 is smaller."""
    with world.live:
        world.run(Candidate(), 0)
    monkeypatch.setattr(prefix, "LIMIT_BYTES", int(factor * world.states.nbytes))
    world.states.clear()


def last_blocks(world: World) -> Iterator[Candidate]:
    """Candidates that differ in the last block only."""
    for channels in range(1, 99):
        yield candidate_of({f"{world.path}.{LAYERS - 1}.mlp": Level(channels=channels)})


def kept(world: World, candidate: Candidate, *micro_batches_: int) -> list[bool]:
    """For each micro-batch whether running a candidate on it reuses states."""
    reused = [len(world.run(candidate, index)) < LAYERS for index in micro_batches_]
    assert world.states.nbytes <= prefix.LIMIT_BYTES
    return reused


def test_what_a_candidate_used_is_not_evicted_for_itself(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(world, monkeypatch, 2)
    candidates = last_blocks(world)
    with world.live:
        assert kept(world, next(candidates), 0, 1, 2) == [False, False, False]
        for _ in range(3):
            assert kept(world, next(candidates), 0, 1, 2) == [True, True, False]


def test_the_least_recently_used_gives_way(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    limited(world, monkeypatch, 2)
    candidates = last_blocks(world)
    with world.live:
        kept(world, next(candidates), 0, 1)
        assert kept(world, next(candidates), 1) == [True]
        assert kept(world, next(candidates), 0) == [True]
        assert kept(world, next(candidates), 2) == [False]
        assert kept(world, next(candidates), 0, 2) == [True, True]
        assert kept(world, next(candidates), 1) == [False]
        assert kept(world, next(candidates), 2, 0) == [True, False]


def test_with_little_room_some_states_are_kept(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of five blocks those behind the second, the fourth and the last."""
    limited(world, monkeypatch, 0.8)
    blocks = {"4.mlp": [4], "3.mlp": [2, 3, 4], "1.attention": [0, 1, 2, 3, 4]}
    with world.live:
        for name, ran in blocks.items():
            world.run(Candidate(), 0)
            assert world.run(world.without(name), 0) == ran
            assert 0 < world.states.nbytes <= prefix.LIMIT_BYTES


@pytest.mark.parametrize("block", range(1, LAYERS))
def test_a_failure_between_kept_states_leaves_what_is_true(
    world: World, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(world, monkeypatch, 0.8)
    one, other = world.without("4.mlp"), world.without("1.mlp")
    with world.live:
        world.run(one, 0)
        world.live.apply(other)
        with failing(world, block, OUT_OF_MEMORY), pytest.raises(torch.OutOfMemoryError):
            world.states.hidden_states(0)
        world.run(other, 0)
        world.run(one, 0)


def test_without_room_nothing_is_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    limited(world, monkeypatch, 0.2)
    with world.live:
        for candidate in (Candidate(), world.without("4.mlp")):
            assert world.run(candidate, 0) == list(range(LAYERS))
            assert world.states.nbytes == 0


def test_states_are_shared_on_any_number_of_micro_batches(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for two of three, candidates are run on two and then on the third."""
    limited(world, monkeypatch, 2)
    drops = [world.without(f"{block}.mlp") for block in (4, 3)]
    with world.live:
        proxy = make_proxy(world.live, world.batches, ProxyConfig())
        proxy.evaluate([Evaluate(Candidate(), (0, 1, 2))])
        world.live.restore()
        proxy._prefixes.clear()
        world.ran.clear()
        results = proxy.evaluate([Evaluate(each, (0, 1, 2)) for each in drops])
        whole, rest = list(range(LAYERS)), [3, 4]
        assert world.ran == [*whole * 2, *rest * 2, *whole, *rest]
        alone = [proxy.evaluate([Evaluate(each, (2, 1, 0))])[0] for each in drops]
    for result, other in zip(results, alone, strict=True):
        assert result.values == other.values[::-1]


def test_each_request_goes_through_its_own_order(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which decides where it stops; nothing is lost where two orders contradict each other."""
    orders = [(0, 1, 2), (2, 1, 0), (1,), (0, 2)]
    found = []
    for factor in (3, 1):
        limited(world, monkeypatch, factor)
        with world.live:
            proxy = make_proxy(world.live, world.batches, ProxyConfig())
            drops = [world.without(f"{block}.mlp") for block in range(4)]
            plain = [Evaluate(*pair) for pair in zip(drops, orders, strict=True)]
            full = proxy.evaluate(plain)
            limits = [replace(r.request, stop_above=0.7 * r.mean) for r in full]
            found.append((full, proxy.evaluate(limits)))
    assert found[0] == found[1]
    for result, order in zip(found[1][0], orders, strict=True):
        assert tuple(value.micro_batch for value in result.values) == order
    assert any(len(result.values) == 2 for result in found[1][1])
