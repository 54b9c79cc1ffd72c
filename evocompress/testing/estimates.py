"""Contract of an estimate: what every entry of `ESTIMATES` must hold to."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from math import pi
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from evocompress.compression.live_model import LiveModel
from evocompress.core.types import DENSE, DROP, Candidate, Level
from evocompress.evaluation.estimates.base import Estimator, Rows, Subject
from evocompress.evaluation.estimates.score import uniforms
from evocompress.models.families import Family, Matrix
from evocompress.models.families.base import matrices_of
from evocompress.models.families.stand_ins import run_block
from evocompress.models.loading import LoadedModel
from evocompress.testing import heuristics
from evocompress.testing.heuristics import Batches
from evocompress.testing.probes import output_pattern

ReferenceRows = Callable[[Family, PreTrainedModel, Batches], Rows]
"""The rows of a float64 model as it stands, from plain forward and backward passes."""

TOLERANCE = 2e-4
TOLERANCES = {"perturbation": 2e-3}
"""Of kinds that are less exact: a difference of float32 losses, divided by 0.002."""


def reference_influence(family: Family, model: PreTrainedModel, micro_batches: Batches) -> Rows:
    """One minus the mean cosine, each branch's input found by running the block without it."""
    blocks = [list(_blocks(family, model, ids)) for ids in micro_batches]
    rows: Rows = {}
    for states in zip(*blocks, strict=True):
        name = states[0][0]
        before, between, after = (torch.cat([state[1][k] for state in states]) for k in range(3))
        for unit, one, other in (
            (name, before, after),
            (f"{name}.attention", before, between),
            (f"{name}.mlp", between, after),
        ):
            rows[unit] = (1 - float(F.cosine_similarity(one, other, dim=-1).mean()),)
    return rows


def reference_distance(
    family: Family, model: PreTrainedModel, micro_batches: Batches, *, last: bool = False
) -> Rows:
    """The arccos of the cosine between every two points of the residual stream, over pi."""
    streams = []
    for ids in micro_batches:
        blocks = [states for _, states in _blocks(family, model, ids)]
        stream = torch.stack([*(before for before, _, _ in blocks), blocks[-1][2]])
        streams.append((stream[:, :, -1:] if last else stream).flatten(1, 2))
    points = torch.cat(streams, dim=1)
    names = [f"{family.layers_path}.{index}" for index in range(len(points) - 1)]
    return {
        name: tuple(
            float(F.cosine_similarity(points[i], point, dim=-1).clamp(max=1).acos().mean() / pi)
            for point in points[i + 1 :]
        )
        for i, name in enumerate(names)
    }


def reference_fluctuation(family: Family, model: PreTrainedModel, micro_batches: Batches) -> Rows:
    """WIFV from all inputs kept, column by column; of experts the mean of what is sorted."""
    rows: Rows = {}
    head_dim = family.architecture(model).head_dim
    for index, block in enumerate(family.blocks(model)):
        for branch in (family.attention, family.mlp):
            every = (m for m in matrices_of(family) if m.sublayer == branch.output.sublayer)
            outputs = [matrix for matrix in every if matrix.columns and not matrix.fixed]
            each = [_wifv(family, model, block, m, micro_batches) for m in outputs]
            if len(each) > 1:
                each = [scores.sort(descending=True).values for scores in each]
            scores = torch.stack(each).mean(0)
            attention = branch is family.attention
            scores = scores**2 if attention else scores
            scores = (scores - scores.mean()) / scores.std()
            size = head_dim if attention else 1
            name = f"{family.layers_path}.{index}.{branch.output.sublayer}"
            rows[name] = tuple(float(part.mean()) for part in torch.split(scores, size))
    return rows


def _wifv(
    family: Family,
    model: PreTrainedModel,
    block: nn.Module,
    output: Matrix,
    micro_batches: Batches,
) -> Tensor:
    """The variance of every input of an output matrix times the squared norm of its column."""
    seen: list[Tensor] = []
    module = block.get_submodule(output.path)
    handle = module.register_forward_pre_hook(
        lambda _, inputs, seen=seen: seen.append(inputs[0].flatten(0, -2))
    )
    for ids in micro_batches:
        family.hidden_states(model, ids)
    handle.remove()
    weight = module.get_parameter("weight")
    columns = weight if output.transposed else weight.T
    variances = torch.cat(seen).double().var(0, correction=0)
    return torch.tensor(
        [
            float(variance) * sum(float(w) ** 2 for w in column)
            for variance, column in zip(variances, columns, strict=True)
        ],
        dtype=torch.float64,
    )


def reference_taylor(family: Family, model: PreTrainedModel, micro_batches: Batches) -> Rows:
    """|weight times gradient| of the mean loss of all tokens at once."""
    ids = torch.cat(list(micro_batches))
    rows: Rows = {}
    model.requires_grad_(True)
    with torch.enable_grad():
        logits = model(ids).logits[:, :-1]
        torch.autograd.backward(F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))
    for index, block in enumerate(family.blocks(model)):
        name = f"{family.layers_path}.{index}"
        for matrix in matrices_of(family):
            weight = block.get_parameter(f"{matrix.path}.weight")
            assert weight.grad is not None
            product = float((weight.detach() * weight.grad).abs().sum())
            for unit in (name, f"{name}.{matrix.sublayer}"):
                rows[unit] = (rows.get(unit, (0.0,))[0] + product,)
    return rows


def reference_curvature(family: Family, model: PreTrainedModel, micro_batches: Batches) -> Rows:
    """The score of drawn tokens times minus what each sub-layer's output matrix holds."""
    rows: dict[str, list[float]] = {}
    model.requires_grad_(True)
    sequences = [ids for batch in micro_batches for ids in torch.split(batch, 1)]
    for ids in sequences:
        scores = _drawn_log_likelihood(model, ids)
        model.zero_grad()
        torch.autograd.backward(scores / (ids.shape[1] - 1) ** 0.5)
        for index, block in enumerate(family.blocks(model)):
            for branch in (family.attention, family.mlp):
                pattern = re.compile(output_pattern(family, branch.output.sublayer))
                products = [
                    float((parameter.detach() * parameter.grad).sum())
                    for path, module in block.named_modules()
                    if pattern.fullmatch(path)
                    for parameter in module.parameters()
                    if parameter.grad is not None
                ]
                name = f"{family.layers_path}.{index}.{branch.output.sublayer}"
                rows.setdefault(name, []).append(-sum(products))
    # First the dense level, which changes nothing.
    return {name: (0.0,) * len(sequences) + tuple(row) for name, row in rows.items()}


def reference_slope(family: Family, model: PreTrainedModel, micro_batches: Batches) -> Rows:
    """At the dense model the divergence has no slope."""
    rows = reference_curvature(family, model, micro_batches)
    return {name: (0.0,) * len(row) for name, row in rows.items()}


def reference_linearised(family: Family, model: PreTrainedModel, micro_batches: Batches) -> Rows:
    """Both."""
    rows = reference_curvature(family, model, micro_batches)
    return {name: (0.0,) * len(row) + row for name, row in rows.items()}


def _drawn_log_likelihood(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Log-likelihood of the tokens that the model draws with the estimate's random numbers."""
    with torch.enable_grad():
        logs = model(ids).logits[0, :-1].log_softmax(-1)
    drawn = [
        int((row.exp().cumsum(0) < float(number)).sum())
        for row, number in zip(logs.detach(), uniforms(ids, Candidate(), len(logs)), strict=True)
    ]
    return sum((row[token] for row, token in zip(logs, drawn, strict=True)), torch.zeros(()))


def reference_frequency(family: Family, model: PreTrainedModel, micro_batches: Batches) -> Rows:
    """The shares of the choices and of the weights, from the routers' logits."""
    rows: Rows = {}
    for unit, entering in _mixture_inputs(family, model, micro_batches):
        router: Any = model.get_submodule(f"{unit}.gate")
        probabilities = (entering @ router.weight.T).softmax(-1)
        weights, chosen = probabilities.topk(router.top_k, dim=-1)
        if getattr(router, "norm_topk_prob", True):
            weights = weights / weights.sum(-1, keepdim=True)
        for index in range(len(router.weight)):
            mine = chosen == index
            share = float(mine.double().mean()), float(weights[mine].sum() / weights.sum())
            rows[f"{unit}.experts.{index}"] = share
    return rows


def reference_expert_error(family: Family, model: PreTrainedModel, micro_batches: Batches) -> Rows:
    """The change of the output where a router must not choose an expert."""
    rows: Rows = {}
    for unit, entering in _mixture_inputs(family, model, micro_batches):
        mixture: Any = model.get_submodule(unit)
        outputs = [expert(entering) for expert in mixture.experts]
        whole = _mixed(mixture.gate, entering, outputs, None) + _shared(mixture, entering)
        for index in range(len(outputs)):
            without = _mixed(mixture.gate, entering, outputs, index) + _shared(mixture, entering)
            change = without - whole
            rows[f"{unit}.experts.{index}"] = (float(change.norm() ** 2 / whole.norm() ** 2),)
    return rows


def _shared(mixture: Any, entering: Tensor) -> Tensor:
    """What an expert that every token passes adds; nothing where there is none."""
    if not hasattr(mixture, "shared_expert"):
        return torch.zeros_like(entering)
    weight = (entering @ mixture.shared_expert_gate.weight.T).sigmoid()
    output: Tensor = weight * mixture.shared_expert(entering)
    return output


def _mixed(router: Any, entering: Tensor, outputs: Sequence[Tensor], gone: int | None) -> Tensor:
    """The weighted sum of experts' outputs, token by token."""
    logits = entering @ router.weight.T
    if gone is not None:
        logits[:, gone] = -torch.inf
    weights, chosen = logits.softmax(-1).topk(router.top_k, dim=-1)
    if getattr(router, "norm_topk_prob", True):
        weights = weights / weights.sum(-1, keepdim=True)
    rows = [
        sum(w * outputs[int(e)][token] for w, e in zip(weights[token], chosen[token], strict=True))
        for token in range(len(entering))
    ]
    return torch.stack(rows)


def _mixture_inputs(
    family: Family, model: PreTrainedModel, micro_batches: Batches
) -> Iterator[tuple[str, Tensor]]:
    """For each mixture its name and what enters it (N, H)."""
    for index, block in enumerate(family.blocks(model)):
        seen: list[Tensor] = []
        core = block.get_submodule(family.mlp.zero_module)
        handle = core.register_forward_pre_hook(lambda _, args, to=seen: to.append(args[0]))
        for ids in micro_batches:
            model(ids)
        handle.remove()
        name = f"{family.layers_path}.{index}.{family.mlp.zero_module}"
        yield name, torch.cat([states.flatten(0, 1) for states in seen])


OF_EXPERTS = ("routing_frequency", "expert_output_error")
"""Kinds that only a mixture of experts has."""

REFERENCES: Mapping[str, ReferenceRows] = {
    "block_influence": reference_influence,
    "angular_distance": reference_distance,
    "last_angular_distance": partial(reference_distance, last=True),
    "fluctuation": reference_fluctuation,
    "taylor": reference_taylor,
    "curvature": reference_curvature,
    "slope": reference_slope,
    "linearised": reference_linearised,
    "magnitude": heuristics.reference_magnitude,
    "lamp": heuristics.reference_lamp,
    "outliers": heuristics.reference_outliers,
    "tail_exponent": heuristics.reference_exponent,
    "perturbation": heuristics.reference_perturbation,
    "pq_index": heuristics.reference_index,
    "output_error": heuristics.reference_errors,
    "routing_frequency": reference_frequency,
    "expert_output_error": reference_expert_error,
}


def drops(live: LiveModel) -> dict[str, tuple[Level, ...]]:
    """Levels that need no library: every sub-layer dense or dropped."""
    kinds = ("attention", "mlp")
    return {name: (DENSE, DROP) for name, unit in live.units.items() if unit.kind in kinds}


def subject_of(live: LiveModel, batches: Batches, candidate: Candidate) -> Subject:
    """A subject that asks about all sub-layers, each dense or dropped."""
    return Subject(live, batches, candidate, drops(live))


def check_matches_reference(
    estimator: Estimator,
    reference: ReferenceRows,
    loaded: LoadedModel,
    batches: Batches,
    tolerance: float = TOLERANCE,
) -> None:
    """The rows at the dense model are the brute-force ones; the model is as it was."""
    expected = reference(loaded.family, copy.deepcopy(loaded.model).double(), batches)
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    with LiveModel(loaded) as live:
        rows = estimator(subject_of(live, batches, Candidate()))
    assert rows.keys() == expected.keys()
    for name, row in rows.items():
        torch.testing.assert_close(row, expected[name], rtol=tolerance, atol=2e-5)
    assert all(torch.equal(before[name], t) for name, t in loaded.model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def check_history_does_not_matter(
    estimator: Estimator, loaded: LoadedModel, batches: Batches, other: Candidate
) -> None:
    """Rows depend neither on what the model was before, nor on how it is asked."""
    with LiveModel(loaded) as live:
        first = estimator(subject_of(live, batches, Candidate()))
        changed = estimator(subject_of(live, batches, other))
        assert estimator(subject_of(live, batches, Candidate())) == first
        assert changed != first
    with LiveModel(loaded) as live:
        assert estimator(subject_of(live, batches, other)) == changed


def check_dropped_has_no_influence(
    estimator: Estimator, loaded: LoadedModel, batches: Batches, candidate: Candidate
) -> None:
    """What a candidate drops has the value zero, or no row; the rest has none that is zero."""
    with LiveModel(loaded) as live:
        rows = estimator(subject_of(live, batches, candidate))
    for name, row in rows.items():
        if name in candidate.by_name:
            assert all(abs(value) < 1e-6 for value in row), name
        elif name.endswith((".attention", ".mlp")):
            assert all(value != 0 for value in row), name


@torch.inference_mode()
def _blocks(
    family: Family, model: PreTrainedModel, ids: Tensor
) -> Iterator[tuple[str, tuple[Tensor, Tensor, Tensor]]]:
    """For each block its name and the residual stream before, within and after it (N, H)."""
    hidden, arguments = family.block_inputs(model, ids)
    for index, (block, keywords) in enumerate(zip(family.blocks(model), arguments, strict=True)):
        attention_alone = copy.deepcopy(block)
        for path, module in family.replacements(attention_alone, "mlp").items():
            attention_alone.set_submodule(path, module)
        between, after = attention_alone(hidden, **keywords), run_block(block, hidden, keywords)
        yield f"{family.layers_path}.{index}", (hidden, between, after)
        hidden = after
