"""What can be done to tiny random models of every type, and whether it holds.

The types are those of causal language models of the installed transformers, those of models of
several parts with a language model within (...ForConditionalGeneration), and encoders of texts and
images, as embedding models. Each is made as its config
class is by default, but for sizes and the number of layers, and checked in float64:

- `removal`: a sub-layer left out is that sub-layer with its last matrix at zero;
- `blocks`: the blocks one after the other are the model's forward pass;
- `parameters` and `flops`: the costs are the parameters that there are and the operations that
  torch counts, unless budgets of those are refused;
- `widths`: cut heads and channels are those with their columns at zero;
- `cache`: a narrower model generates the same tokens with a cache and without.

Printed is a line for each type: what is offered, how many checks held, seconds, which checks did
not hold, and what is not offered with the reason. Figures: `types`; `types_offered`, those with
drops and zeros whose checks all held; `types_with_widths`, those of them with heads and channels as
well; `types_with_heads`, `types_with_channels`, `types_with_experts`; `checks_passed` and
`checks_failed`; `seconds`, of all types together. What a type gave is kept in the folder and not
tried again: remove the folder after a change.

    python benchmarks/model_coverage.py --folder runs/coverage --json coverage.json
    python benchmarks/model_coverage.py --type olmo2 --type gpt_oss
    python benchmarks/model_coverage.py --quick
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from cells import cell
from common import Figure, emit
from transformers import PreTrainedModel

from evocompress.core.errors import ModelError, one_line
from evocompress.models.checkpoints import quiet_transformers
from evocompress.models.families import FAMILIES, family_of
from evocompress.models.families.derivation.from_config import first_derived
from evocompress.models.families.derivation.purpose import tasks_of
from evocompress.models.loading import LoadedModel
from evocompress.models.tasks import Task
from evocompress.pipeline.offers import offers, type_names
from evocompress.pipeline.offers.table import OfferWorker, Unanswered
from evocompress.space.costs import cost_model
from evocompress.testing.costs import counted_decoding, counted_flops
from evocompress.testing.derived import LAYERS, typical_config, typical_loaded, typical_model
from evocompress.testing.families import SUBLAYERS, FamilyContract
from evocompress.testing.narrowing import NarrowingContract
from evocompress.testing.plain_library import PlainLibrary

QUICK = ("olmo2", "phi", "llama", "bart")
DROPS, WIDTHS = ("attention", "mlp", "block"), ("heads", "channels")
LENGTH = 16
"""Tokens of the sequence whose operations are counted."""

Check = Callable[[], None]


def main() -> None:
    """Try, print and write."""
    arguments = parse()
    names = list(QUICK) if arguments.quick else arguments.type or every_type()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(arguments.folder or scratch)
        emit("model_coverage", figures(run(names, folder, arguments.limit)), arguments.json)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--quick", action="store_true", help="a handful of types")
    parser.add_argument("--type", action="append", help="only this type; may be given again")
    parser.add_argument("--folder", help="keeps what each type gave; it is not tried again")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for a type")
    return parser.parse_args()


def every_type() -> list[str]:
    """Those that `evocompress models` lists, but for those with a family alone."""
    return [name for name in type_names() if tasks_of(name)]


def run(names: Sequence[str], folder: Path, limit: float) -> list[dict[str, Any]]:
    """What each type gives, in a process that a type may end."""
    worker, found = OfferWorker(of_type, limit), []
    for name in names:
        found.append(cell(folder, name, partial(answered, worker, name)))
        print(line(found[-1]), flush=True)
    worker.close()
    return found


def answered(worker: OfferWorker, name: str) -> dict[str, Any]:
    """What a type gives; nothing where its process does not say."""
    start = time.perf_counter()
    try:
        found: dict[str, Any] = worker.ask(name)
    except Unanswered as reason:
        found = nothing(name, str(reason))
    return found | {"seconds": time.perf_counter() - start}


def nothing(name: str, reason: str) -> dict[str, Any]:
    """What a type gives to which nothing can be done."""
    return {"type": name, "offered": [], "checks": {}, "reasons": [reason]}


def line(found: dict[str, Any]) -> str:
    """A type in a line."""
    failed = {name: said for name, said in found["checks"].items() if said}
    passed = f"{len(found['checks']) - len(failed)}/{len(found['checks'])}"
    said = "; ".join([*(f"{name}: {why}" for name, why in failed.items()), *found["reasons"]])
    offered = " ".join(found["offered"]) or "nothing"
    return f"{found['type']:24} {offered} | {passed} checks, {found['seconds']:.1f} s | {said}"


def figures(found: Sequence[dict[str, Any]]) -> dict[str, Figure]:
    """All types together."""
    sound = [one for one in found if not any(one["checks"].values())]
    dropping = [one for one in sound if "zeros" in one["offered"] and {*DROPS} & {*one["offered"]}]
    checks = [said for one in found for said in one["checks"].values()]

    def having(*actions: str) -> int:
        return sum({*actions} <= {*one["offered"]} for one in dropping)

    return {
        "types": len(found),
        "types_offered": len(dropping),
        "types_with_widths": having(*WIDTHS),
        "types_with_heads": having("heads"),
        "types_with_channels": having("channels"),
        "types_with_experts": having("experts"),
        "checks_passed": sum(not said for said in checks),
        "checks_failed": sum(bool(said) for said in checks),
        "seconds": sum(one["seconds"] for one in found),
    }


def of_type(name: str) -> dict[str, Any]:
    """What is offered of a type, and whether it holds."""
    with quiet_transformers(), torch.no_grad():
        try:
            config = typical_config(name)
            task, layers = needed(config)
            loaded = typical_loaded(config, layers, task)
            told = offers(loaded)
        except ModelError as error:
            return nothing(name, str(error))
        except Exception as error:  # classes of models fail with any type of error
            return nothing(name, f"a tiny model cannot be made ({one_line(error)})")
        checks = {key: said(check) for key, check in all_checks(loaded, config, layers, task)}
    offered = [action for action, count in told.actions.items() if count]
    held = {key: text for key, text in checks.items() if text is not None}
    return {"type": name, "offered": offered, "checks": held, "reasons": list(told.reasons)}


def needed(config: Any) -> tuple[Task, int]:
    """A task, and how many of the first layers are of all kinds, or as many as the checks want."""
    for family in FAMILIES.values():
        if family.model_type == config.model_type:
            return family.task, LAYERS
    found = first_derived(config)
    order = found.order
    first = max(order.index(kind) + 1 for kind in set(order))
    return found.task, max(LAYERS, first, sum(found.calls))


def said(check: Check) -> str | None:
    """Why a check does not hold; empty where it does, none where it does not apply."""
    try:
        check()
    except pytest.skip.Exception:
        return None
    except Exception as error:  # a wrong family breaks a model in any way
        return one_line(error)[:300] or type(error).__name__
    return ""


def all_checks(
    loaded: LoadedModel, config: Any, layers: int, task: Task
) -> Iterator[tuple[str, Check]]:
    """The checks, each with a model of its own where it changes it."""
    family, contract, narrowing = loaded.family, FamilyContract(), NarrowingContract()

    def fresh() -> PreTrainedModel:
        return typical_model(config, layers, task)

    dropped = contract.test_a_dropped_sublayer_adds_nothing
    narrow = narrowing.test_a_narrow_sublayer_is_the_silenced_one
    cached = narrowing.test_generation_with_a_cache_is_that_without
    last = len(family.blocks(loaded.model)) - 1  # blocks may be run as often as there are layers
    for kind, index in product(SUBLAYERS, (0, last)):
        yield (
            f"removal of {kind} {index}",
            lambda k=kind, i=index: dropped(family, fresh(), i, k),
        )
    for name, check in {
        "blocks": contract.test_blocks_by_hand_make_the_hidden_states,
        "outputs": contract.test_body_and_head_make_the_outputs,
        "identity": contract.test_a_dropped_block_passes_its_input_through,
        "parameters": contract.test_parameters_are_counted_exactly,
        "parameters of parts": contract.test_own_parameters_are_dead_when_dropped,
    }.items():
        yield name, lambda c=check: c(family, fresh())
    if not family.architecture(fresh()).uncounted:  # else budgets of FLOPs are refused
        yield "flops", lambda: check_flops(fresh())
        yield "decoding", lambda: check_decoding(fresh())
    for kind in SUBLAYERS:
        yield (
            f"width of {kind}",
            lambda k=kind: narrow(loaded, PlainLibrary(loaded), k, bias=False),
        )
    yield "cache", lambda: cached(loaded, PlainLibrary(loaded))


def check_flops(model: PreTrainedModel) -> None:
    """The predicted operations are those that torch counts."""
    family = family_of(model)
    architecture = family.architecture(model)
    length = architecture.tokens or LENGTH
    units = family.units(model)
    predicted = cost_model(units, architecture, length=length).dense()["flops"]
    mixing = {unit.block for unit in units if unit.kind == "attention"}
    without = {*range(len(family.blocks(model)))} - mixing
    counted = counted_flops(model, architecture, family, LENGTH, without)
    assert predicted == counted, f"predicted {predicted:.0f}, counted {counted}"


def check_decoding(model: PreTrainedModel) -> None:
    """So are those of a decoded token, and the bytes of the cache."""
    model.float()
    family = family_of(model)
    if not family.task.causal:
        pytest.skip("only causal language models decode")
    costs = cost_model(family.units(model), family.architecture(model), length=LENGTH).dense()
    predicted = int(costs["decode_flops"]), int(costs["kv_bytes"])
    try:
        found = counted_decoding(model, LENGTH)
    except (AttributeError, StopIteration, TypeError, ValueError) as error:
        pytest.skip(f"it has no cache that can be asked: {error}")
    assert predicted == found, f"predicted {predicted}, counted {found}"


if __name__ == "__main__":
    main()
