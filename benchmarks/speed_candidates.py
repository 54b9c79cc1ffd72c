"""The part of `speed.py` that is about evaluating candidates."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import Figure, clock, interleaved, median_ratio
from safetensors.torch import load_file, save_file
from speed_setting import Setting
from torch import Tensor
from torch.nn import functional

from evocompress.compression.library import Library
from evocompress.compression.live_model import LiveModel
from evocompress.core.config import ProxyConfig
from evocompress.core.requests import Evaluate
from evocompress.core.types import DROP, Candidate, Level
from evocompress.evaluation.proxies import make_proxy, prefix
from evocompress.evaluation.proxies.evaluator import MetricProxy
from evocompress.evaluation.proxies.prefix import levels_by_block
from evocompress.models import vocabulary
from evocompress.models.head import bucket_log_probabilities
from evocompress.models.loading import LoadedModel
from evocompress.search.operators.mutation import distinct, mutate
from evocompress.space import sampling
from evocompress.space.costs.model import CostModel
from evocompress.space.space import SearchSpace
from evocompress.testing.plain_library import PlainLibrary

LIMIT = prefix.LIMIT_BYTES
MATRICES = 100
CHUNKS = (42, 85, 170, 341, 1022)


def candidates(setting: Setting) -> dict[str, Figure]:
    """All figures of this part."""
    figures = forward(setting) | head_chunks(setting)
    figures |= generations(setting)
    figures |= depth(setting)
    figures["swap_ms_per_100"] = swap(setting)
    figures["swap_widths_ms_per_100"] = swap_widths(setting)
    return figures


def forward(setting: Setting) -> dict[str, Figure]:
    """A candidate's evaluation and its bare forward pass."""
    figures: dict[str, Figure] = {}
    for dtype in setting.dtypes:
        loaded = setting.load(dtype)
        ids = setting.tokens(2)
        with LiveModel(loaded) as live:
            proxy = proxy_of(live, ids, limit=0)
            request = Evaluate(Candidate(), (0,))
            proxy.evaluate([request])
            functions: dict[str, Callable[[], object]] = {
                "bare": partial(bare, loaded, ids),
                "proxy": partial(proxy.evaluate, [request]),
            }
            prefix.LIMIT_BYTES = 0
            seconds = interleaved(functions, setting.repeats)
            prefix.LIMIT_BYTES = LIMIT
        figures[f"vs_forward_{dtype}"] = median_ratio(seconds["bare"], seconds["proxy"])
    return figures | {"vs_forward": min(float(value or 0) for value in figures.values())}


@torch.inference_mode()
def head_chunks(setting: Setting) -> dict[str, Figure]:
    """Head and divergence over the head's product alone, in chunks of rows and in slices."""
    model, ids = setting.loaded.model, setting.tokens(2)
    family = setting.loaded.family
    rows = family.hidden_states(model, ids)[:, :-1].flatten(0, 1)
    target = family.outputs(model, rows).topk(ProxyConfig().top_k).indices

    def chunked(count: int) -> None:
        for part, tokens in zip(torch.split(rows, count), torch.split(target, count), strict=True):
            bucket_log_probabilities(family.outputs(model, part), tokens)

    functions: dict[str, Callable[[], object]] = {"product": lambda: family.outputs(model, rows)}
    functions |= {f"{count}_rows": partial(chunked, count) for count in CHUNKS}
    if vocabulary.in_slices(family, model):
        functions["slices"] = partial(
            vocabulary.log_probabilities, family, model, rows, target.int()
        )
    seconds = interleaved(functions, setting.repeats)
    return {
        f"head_{name}": median_ratio(times, seconds["product"])
        for name, times in seconds.items()
        if name != "product"
    }


@torch.inference_mode()
def bare(loaded: LoadedModel, ids: Tensor) -> None:
    """All logits, and one of them read."""
    loaded.model(ids, use_cache=False).logits[0, -1, 0].item()


def proxy_of(live: LiveModel, ids: Tensor, *, limit: int = LIMIT) -> MetricProxy:
    """A proxy on one micro-batch (b, S) that has its targets already."""
    prefix.LIMIT_BYTES = limit
    proxy = make_proxy(live, [ids], ProxyConfig())
    proxy.evaluate([Evaluate(Candidate(), (0,))])
    return proxy


def mutations(setting: Setting, begin: float = 0.0) -> list[Candidate]:
    """A generation of mutations of one parent, in blocks from a fraction of the depth on."""
    space, rng = setting.sparsity, np.random.default_rng(0)
    parent = sampling.uniform(space)
    for _ in range(30):
        parent = mutate(space, parent, rng)
    blocks = np.array([unit.block for unit in space.encoding.units])
    fixed = np.flatnonzero(blocks < begin * (blocks.max() + 1)).tolist()
    children = distinct(
        lambda: mutate(space, parent, rng, fixed=fixed), setting.generation, excluded=parent
    )
    return [space.encoding.candidate(child) for child in children]


def generations(setting: Setting) -> dict[str, Figure]:
    """Mutations evaluated together, each alone, and by the published recipe."""
    loaded, ids = setting.loaded, setting.tokens(1)
    anywhere, late = mutations(setting), mutations(setting, 0.75)
    shares = block_shares(setting.sparsity.cost_model)
    with LiveModel(loaded, setting.library) as live:
        recipe = Recipe(loaded, setting.library, ids, setting.folder / "files", anywhere)
        functions: dict[str, Callable[[], object]] = {
            "alone": partial(evaluate, live, ids, anywhere, together=False),
            "together": partial(evaluate, live, ids, anywhere, together=True),
            "late": partial(evaluate, live, ids, late, together=True),
            "recipe": recipe.evaluate,
        }
        seconds = interleaved(functions, setting.repeats)
    gain = median_ratio(seconds["alone"], seconds["together"])
    return {
        "evopress_workload": gain,
        "trie_efficiency": gain / predicted_gain(live, anywhere, shares),
        "window_workload": median_ratio(seconds["alone"], seconds["late"]),
        "vs_published_recipe": median_ratio(seconds["recipe"], seconds["together"]),
        "seconds_per_candidate": statistics.median(seconds["together"]) / setting.generation,
    }


def evaluate(
    live: LiveModel, ids: Tensor, asked: Sequence[Candidate], *, together: bool
) -> list[float]:
    """The values of candidates on a micro-batch, nothing kept from before but the targets."""
    proxy = _PROXIES.setdefault(id(live), proxy_of(live, ids))
    proxy._prefixes.clear()
    requests = [Evaluate(candidate, (0,)) for candidate in asked]
    if together:
        return [result.mean for result in proxy.stream(requests)]
    found = []
    for request in requests:
        found.append(proxy.evaluate([request])[0].mean)
        proxy._prefixes.clear()
    return found


_PROXIES: dict[int, MetricProxy] = {}


def block_shares(model: CostModel) -> list[float]:
    """Operations of each block, and at last of the head, as fractions of a forward pass."""
    total, shares = model.dense()["flops"], dict.fromkeys(range(len(model.parts) // 2), 0.0)
    for part, flops in zip(model.parts, part_flops(model).values(), strict=True):
        shares[part.unit.block] += flops / total
    return [*shares.values(), 1 - sum(shares.values())]


def part_flops(model: CostModel) -> dict[str, float]:
    """Operations of each dense sub-layer: what a model without it saves."""
    without = [Candidate(((part.unit.name, DROP),)) for part in model.parts]
    left, dense = model.of(without)["flops"], model.dense()["flops"]
    return {part.unit.name: dense - float(x) for part, x in zip(model.parts, left, strict=True)}


def predicted_gain(live: LiveModel, asked: Sequence[Candidate], shares: Sequence[float]) -> float:
    """Forward passes that candidates are, over those that the nodes of their trie are."""
    nodes: set[tuple[object, ...]] = set()
    for candidate in asked:
        path = levels_by_block(candidate, live.units)
        nodes |= {tuple(path[: depth + 1]) for depth in range(len(path))}
    work = sum(shares[len(node) - 1] for node in nodes)
    return len(asked) / (work + len(asked) * shares[-1])


class Recipe:
    """The recipe of EvoPress's released code (2410.14649).

    One sequence at a time; the weights of each matrix that changes are read from its own file;
    full float32 logits of the dense model are kept; log-softmax of both sides over the whole
    vocabulary. (Its files are pickles, here safetensors.)
    """

    def __init__(
        self,
        loaded: LoadedModel,
        library: Library,
        ids: Tensor,
        folder: Path,
        asked: Sequence[Candidate],
    ) -> None:
        self._loaded = loaded
        self._folder = folder
        self._asked = asked
        self._sequences = [each[None] for each in ids]
        self._current: dict[str, str] = {}
        folder.mkdir()
        for name, level in {pair for candidate in asked for pair in candidate.levels}:
            weight = library.load(name, level)["weight"]
            save_file({"weight": weight.contiguous()}, self._file(name, level.key))
        with torch.inference_mode():
            self._targets = [self._logits(each) for each in self._sequences]
        self._dense = {
            name: loaded.model.get_parameter(f"{name}.weight").data
            for name in {name for candidate in asked for name, _ in candidate.levels}
        }

    @torch.inference_mode()
    def evaluate(self) -> list[float]:
        """The values of all candidates; the model is dense before and after."""
        found = [self._value(candidate) for candidate in self._asked]
        for name, weight in self._dense.items():
            self._loaded.model.get_parameter(f"{name}.weight").data = weight
        self._current.clear()
        return found

    def _value(self, candidate: Candidate) -> float:
        for name, level in candidate.levels:
            if self._current.get(name) != level.key:
                device = str(self._loaded.model.device)
                weight = load_file(self._file(name, level.key), device=device)["weight"]
                self._loaded.model.get_parameter(f"{name}.weight").data = weight
                self._current[name] = level.key
        pairs = zip(self._sequences, self._targets, strict=True)
        return statistics.fmean(self._divergence(ids, target) for ids, target in pairs)

    def _divergence(self, ids: Tensor, target: Tensor) -> float:
        logits = self._logits(ids)
        return functional.kl_div(
            logits.flatten(0, 1).log_softmax(-1),
            target.flatten(0, 1).log_softmax(-1),
            reduction="batchmean",
            log_target=True,
        ).item()

    def _logits(self, ids: Tensor) -> Tensor:
        logits: Tensor = self._loaded.model(ids, use_cache=False).logits.float()
        return logits[:, :-1].contiguous()

    def _file(self, name: str, key: str) -> Path:
        return self._folder / f"{name}-{key.replace('/', '_')}.safetensors"


def depth(setting: Setting) -> dict[str, Figure]:
    """Candidates without a quarter of their sub-layers, together, and as many dense ones."""
    space = setting.space(drop={}, budget={"body_params": 0.75})
    rng = np.random.default_rng(1)
    parent = sampling.random(space, rng)
    children = distinct(lambda: mutate(space, parent, rng), setting.generation, excluded=parent)
    asked = [space.encoding.candidate(child) for child in children]
    ids = setting.tokens(1)
    dense = [Candidate()] * len(asked)
    with LiveModel(setting.loaded) as live:
        functions: dict[str, Callable[[], object]] = {
            "dense": partial(evaluate, live, ids, dense, together=False),
            "together": partial(evaluate, live, ids, asked, together=True),
        }
        seconds = interleaved(functions, setting.repeats)
        gain = median_ratio(seconds["dense"], seconds["together"])
        predicted = depth_gain(live, asked, space)
    return {"depth_workload": gain, "depth_efficiency": gain / predicted}


def depth_gain(live: LiveModel, asked: Sequence[Candidate], space: SearchSpace) -> float:
    """Operations of as many dense models, over those of the nodes of a trie of candidates."""
    model = space.cost_model
    amounts, total = part_flops(model), model.dense()["flops"]
    parts: dict[int, list[str]] = {}
    for part in model.parts:
        parts.setdefault(part.unit.block, []).append(part.unit.name)
    nodes: dict[tuple[object, ...], float] = {}
    for candidate in asked:
        path = levels_by_block(candidate, live.units)
        gone = {name for name, level in candidate.levels if level.drop}
        for block in range(len(path)):
            kept = [name for name in parts[block] if name not in gone]
            nodes[tuple(path[: block + 1])] = sum(amounts[name] for name in kept)
    head = total - sum(amounts.values())
    return len(asked) * total / (sum(nodes.values()) + len(asked) * head)


def swap(setting: Setting) -> float:
    """Milliseconds in which 100 matrices of the model become others."""
    genes = setting.sparsity.encoding
    wanted = min(MATRICES, len(genes.units))
    levels = [
        Candidate(
            tuple(
                sorted(
                    (genes.units[gene].name, genes.levels[gene][genes.default[gene] + step])
                    for gene in range(wanted)
                )
            )
        )
        for step in (0, 1)
    ]
    with LiveModel(setting.loaded, setting.library) as live:
        return MATRICES / wanted * milliseconds(setting, live, levels)


def swap_widths(setting: Setting) -> float:
    """Milliseconds in which 100 matrices of MLPs get other widths that the model had before."""
    loaded = setting.loaded
    mlps = [unit.name for unit in loaded.family.units(loaded.model) if unit.kind == "mlp"]
    channels = loaded.family.architecture(loaded.model).channels[0]
    levels = [
        Candidate(tuple((name, Level(channels=channels // part)) for name in sorted(mlps)))
        for part in (2, 4)
    ]
    library = PlainLibrary(loaded)
    matrices = sum(unit.parent in levels[0].by_name for unit in library.units.values())
    with LiveModel(loaded, library) as live:
        return MATRICES / matrices * milliseconds(setting, live, levels)


def milliseconds(setting: Setting, live: LiveModel, candidates: Sequence[Candidate]) -> float:
    """Median time of making the model each of two candidates in turn, both known to it."""
    seconds = []
    for turn in range(2 * setting.repeats + 2):
        start = clock()
        live.apply(candidates[turn % 2])
        seconds.append(clock() - start)
    return 1000 * statistics.median(seconds[2:])
