"""What a healing takes: moments in eight bits, several processes, teachers on disk or adapted."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from test_planning import LENGTH, config

from evocompress.compression.library import build_library
from evocompress.core.config import LibraryConfig
from evocompress.core.errors import ConfigError
from evocompress.core.types import DENSE, Candidate, Level
from evocompress.export import materialize
from evocompress.export.parts import PARTS_FILE
from evocompress.models.loading import load
from evocompress.pipeline.planning import DEVICES, make_plan
from evocompress.pipeline.planning.healing import heal_stage
from evocompress.pipeline.planning.plan import context_of
from evocompress.pipeline.planning.stages import PlannedRun
from evocompress.testing.tiny import tiny_checkpoint, tiny_loaded

H200 = DEVICES["h200"]
BITS = {"bits_per_weight": 30}


def test_moments_in_eight_bits_take_less_memory_and_disk():
    def planned(optimizer, device=DEVICES["h200"]):
        heal = {"optimizer": optimizer, "evaluate_every": 1}
        return make_plan(config(heal=heal), tiny_loaded(), device)

    full, packed = (planned(name).stages[-1] for name in ("adamw", "adamw8bit"))
    saved = full.device_bytes - packed.device_bytes
    assert full.disk_bytes - packed.disk_bytes == pytest.approx(2 * saved, rel=1e-6)
    run = PlannedRun(context_of(config(), tiny_loaded()), shared=False)
    weights = run.costs[1]["params"]
    assert saved == pytest.approx((8 - 2 * (1 + 4 / 256)) * weights, rel=1e-6)
    small = replace(DEVICES["h200"], name="small", memory=packed.device_bytes)
    (advice,) = (line for line in planned("adamw", small).advice if line.startswith("heal"))
    assert "heal.optimizer=adamw8bit" in advice
    assert not [line for line in planned("adamw8bit", small).advice if line.startswith("heal")]


def test_only_what_may_keep_the_models_own_type_is_counted_as_trained():
    def planned(types, match=("*",)):
        bits = {"types": types, "match": match}
        return make_plan(config(space={"bits": bits, "budget": BITS}), tiny_loaded(), H200)

    loaded = tiny_loaded()
    every = dict(loaded.model.named_parameters())
    ups = sum(p.numel() for name, p in every.items() if "up_proj" in name)
    matrices = sum(p.numel() for name, p in every.items() if "proj" in name)
    free, some, none = (
        planned(["dense", "q4_0"]),
        planned(["q4_0"], ["*up_proj"]),
        planned(["q4_0"]),
    )
    each = 4 + 16  # a gradient of the model; master, gradient and moments in float32
    used = [plan.stages[-1].device_bytes for plan in (free, some, none)]
    assert used[0] - used[1] == pytest.approx(each * ups, rel=1e-6)
    assert used[0] - used[2] == pytest.approx(each * matrices, rel=1e-6)
    said = [[note for note in plan.notes if "coarser" in note] for plan in (free, some, none)]
    assert said[1:] == [[], []]
    assert said[0][0].startswith("heal: 21 matrices may keep the model's own type")


def test_what_is_trained_through_its_rounding_is_counted():
    """Of q4_0, with one scale for 32 weights."""

    def used(**heal):
        bits = {"types": ["q4_0"], "match": ["*up_proj"]}
        space = {"bits": bits, "budget": BITS}
        return make_plan(config(space=space, heal=heal), tiny_loaded(), H200).stages[-1]

    every = dict(tiny_loaded().model.named_parameters())
    ups = sum(p.numel() for name, p in every.items() if "up_proj" in name)
    frozen, scales = used(), used(train="all,scales")
    through, both = used(straight_through=True), used(train="all,scales", straight_through=True)
    integers = 1 + 8 / 32
    masters = 4 + 16
    more = [one.device_bytes - frozen.device_bytes for one in (scales, through, both)]
    assert more[0] == pytest.approx(ups * (integers + 4 + masters / 32), rel=1e-6)
    assert more[1] == pytest.approx(ups * (integers + masters), rel=1e-6)
    assert more[2] == pytest.approx(ups * (integers + masters + masters / 32), rel=1e-6)
    with pytest.raises(ConfigError, match="heal.straight_through: nothing that it trains"):
        used(train="norms", straight_through=True)


def test_several_processes_share_out_the_optimizer_and_are_advised():
    def planned(processes, device=DEVICES["h200"], accumulate=4):
        heal = {"accumulate": accumulate}
        return make_plan(config(heal=heal), tiny_loaded(), device, processes)

    one, four = (planned(processes).stages[-1] for processes in (1, 4))
    run = PlannedRun(context_of(config(), tiny_loaded()), shared=False)
    saved = one.device_bytes - four.device_bytes
    assert saved <= 3 / 4 * 16 * run.costs[1]["params"]
    assert saved == pytest.approx(3 / 4 * 16 * run.costs[1]["params"], rel=0.1)
    assert four.work.products == pytest.approx(one.work.products / 4)
    assert four.disk_bytes == one.disk_bytes
    small = replace(DEVICES["h200"], name="small", memory=four.device_bytes)
    (advice,) = (line for line in planned(1, small).advice if line.startswith("heal"))
    assert "4 processes with a device each (--processes 4)" in advice
    assert not [line for line in planned(4, small).advice if line.startswith("heal")]
    (advice,) = (line for line in planned(1, small, 6).advice if line.startswith("heal"))
    assert "4 processes with a device each (--processes 4 with heal.accumulate=12)" in advice
    with pytest.raises(ConfigError, match="shared out among 3 processes"):
        planned(3)


def test_one_process_keeps_the_whole_of_a_matrix_that_is_trained_alone():
    def device_bytes(processes, **heal):
        shared = config(heal={"accumulate": 2, **heal})
        return make_plan(shared, tiny_loaded(), DEVICES["h200"], processes).stages[-1].device_bytes

    assert device_bytes(2, train="head") == device_bytes(1, train="head")
    assert device_bytes(2, train="norms") < device_bytes(1, train="norms")
    assert device_bytes(2, train="biases") == device_bytes(1, train="biases")  # there are none


def healing(**heal):
    settings = {"batch": 2, "accumulate": 2, **heal}
    return heal_stage(PlannedRun(context_of(config(heal=settings), tiny_loaded()), shared=True))


def test_a_teacher_on_disk_is_in_no_memory():
    loaded = tiny_loaded()
    blocks = sum(p.nbytes for p in loaded.family.blocks(loaded.model).parameters())
    whole, kept, more = healing(steps=5), healing(steps=5, top_k=16), healing(steps=5, top_k=32)
    validation = 8 * LENGTH * 64 * 4
    assert whole.device_bytes - kept.device_bytes == blocks - validation
    assert kept.disk_bytes - whole.disk_bytes == blocks + 20 * (LENGTH - 1) * 4 * 33
    assert more.disk_bytes - kept.disk_bytes == 20 * (LENGTH - 1) * 4 * 32


def test_a_teacher_on_disk_is_advised_where_that_helps():
    loaded, changes = tiny_loaded(layers=40), {"train": "norms", "batch": 1, "steps": 5}

    def advice(memory, **more):
        small = replace(DEVICES["a100"], name="small", memory=memory)
        plan = make_plan(config(heal={**changes, **more}), loaded, small)
        return [line for line in plan.advice if line.startswith("heal")]

    needed = make_plan(config(heal=changes), loaded, DEVICES["a100"]).stages[-1].device_bytes
    blocks = sum(p.nbytes for p in loaded.family.blocks(loaded.model).parameters())
    (line,) = advice(needed - blocks // 2)
    assert "heal.top_k=64" in line
    assert not advice(needed - blocks // 2, top_k=64)
    assert "heal.top_k" not in "".join(advice(needed - blocks // 2, states=1.0))


def test_an_adapted_teacher_is_trained_and_is_a_second_model():
    loaded = tiny_loaded()
    weights = sum(parameter.nbytes for parameter in loaded.model.parameters())
    plain, adapted = healing(train="norms"), healing(train="norms", adapt_teacher=LENGTH * 100)
    assert adapted.device_bytes > max(plain.device_bytes + weights, 4 * weights)
    assert adapted.disk_bytes > 6 * weights
    run = PlannedRun(context_of(config(), loaded), shared=True)
    more = adapted.work.products - plain.work.products
    assert more == pytest.approx(3 * run.products(LENGTH * 100, dense=True).products)


def test_every_process_keeps_blocks_of_its_own_on_disk():
    loaded = tiny_loaded()
    blocks = sum(p.nbytes for p in loaded.family.blocks(loaded.model).parameters())

    def disk(processes, **heal):
        settings = {"batch": 2, "accumulate": 2, "steps": 5, "top_k": 16, **heal}
        planned = make_plan(config(heal=settings), loaded, DEVICES["h200"], processes)
        return planned.stages[-1].disk_bytes

    # While a teacher is trained, which takes the most, the dense model's own blocks are there.
    for heal in ({}, {"adapt_teacher": 100}):
        one, two = (disk(processes, **heal) for processes in (1, 2))
        assert two - one == blocks


@pytest.mark.parametrize("kind", ["q4_0", "w3g32z"])
def test_what_stands_beside_a_checkpoint_with_types_is_on_disk(kind, tmp_path):
    """Two checkpoints are there for a moment, each with a file as large as the matrices."""
    loaded = load(str(tiny_checkpoint(tmp_path / "model")))
    names = [u.name for u in loaded.family.units(loaded.model) if u.kind == "matrix"]
    typed = Level(bits=kind)
    tokens = torch.randint(1, 250, (8, 32), generator=torch.Generator().manual_seed(0))
    wanted, path = dict.fromkeys(names, [DENSE, typed]), tmp_path / "library"
    library = build_library(loaded, wanted, tokens, "tokens", LibraryConfig(), path, batch=4)
    candidate = Candidate(tuple((name, typed) for name in sorted(names)))
    out = materialize(loaded, library, candidate, tmp_path / "out", format="stock")
    files = [load_file(out / name).values() for name in ("model.safetensors", PARTS_FILE)]
    each = [sum(tensor.nbytes for tensor in tensors) for tensors in files]
    assert each[1] > each[0] / 16
    settings = config(space={"bits": {"types": [kind]}, "budget": BITS}, heal={"steps": 1})
    planned = heal_stage(PlannedRun(context_of(settings, loaded), shared=True))
    assert planned.disk_bytes == 2 * sum(each)
