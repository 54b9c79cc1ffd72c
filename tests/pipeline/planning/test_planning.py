"""Plans: amounts of work and memory against counting on a model, and what helps where they fail."""

import math
import re
from dataclasses import replace

import pytest
import torch
from run_files import TEXT
from transformers import AutoConfig

from evocompress import api
from evocompress.compression.library.gram import gram_operations
from evocompress.core.config import RunConfig
from evocompress.core.errors import ConfigError, ModelError
from evocompress.evaluation.heldout import count_flops
from evocompress.models.families import family_of
from evocompress.pipeline.planning import (
    DEVICES,
    make_plan,
    outline,
    plan_notes,
    plan_rows,
    preflight,
)
from evocompress.pipeline.planning.device import Device
from evocompress.pipeline.planning.measure import measured
from evocompress.pipeline.planning.plan import context_of
from evocompress.pipeline.planning.stages import PlannedRun, library_stage, search_stage
from evocompress.pipeline.planning.work import Work
from evocompress.testing.staged import require_packages
from evocompress.testing.tiny import NAMES, tiny_checkpoint, tiny_loaded, tiny_model

LENGTH = 32
SPARSE = {"sparsity": {"target": 0.5, "levels": 2}}
NARROW = {"width": {"multiple_of": 8}, "drop": {}, "budget": {"body_params": 0.7}}
SLOW = Device("slow", 10**9, {"float32": 10.0}, 20.0, 40.0, 50.0, 100.0, 25.0, 5.0, 0.5)


def config(model="m", space=NARROW, **changes):
    calibration = {
        "source": "text.txt",
        "library_sequences": 6,
        "search_sequences": 8,
        "length": LENGTH,
    }
    return RunConfig.model_validate(
        {
            "name": "n",
            "model": {"source": str(model)},
            "calibration": calibration,
            "space": space,
            "search": {"name": "auto", "tokens": 4000},
            "heal": {"validation_sequences": 4},
            **changes,
        }
    )


@pytest.fixture
def checkpoint(tmp_path):
    return tiny_checkpoint(tmp_path / "model")


def test_work_takes_the_slower_of_products_weights_and_transfers_and_the_rest_beside():
    work = Work(products=30, statistics=10, sweep=20, removal=40, logits=50, written=5, launches=4)
    assert work.seconds(SLOW, "float32") == pytest.approx(3 + 1 + 1 + 1 + 1 + 1 + 2)
    heavy = work + Work(weights=700, brought=50, moved=100)
    assert heavy.seconds(SLOW, "float32") == pytest.approx(7 + 1 + 1 + 1 + 1 + 1 + 2 + 1)
    assert (work * 3).seconds(SLOW, "float32") == pytest.approx(3 * work.seconds(SLOW, "float32"))


@pytest.mark.parametrize("model_type", sorted(NAMES))
def test_an_outline_knows_all_of_a_model_but_its_weights(tmp_path, model_type):
    require_packages(model_type)
    model = tiny_model(model_type)
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    for source in (tmp_path, tmp_path / "config.json"):
        found, family = outline(str(source)), family_of(model)
        assert found.model.device.type == "meta"
        assert found.family.units(found.model) == family.units(model)
        assert found.family.architecture(found.model) == family.architecture(model)


def test_an_outline_has_the_dtype_of_the_config_or_the_wanted_one(tmp_path):
    tiny_model("llama", dtype=torch.bfloat16).save_pretrained(tmp_path)
    assert outline(str(tmp_path)).model.dtype == torch.bfloat16
    assert outline(str(tmp_path), "float16").model.dtype == torch.float16


def test_a_device_is_measured_for_models_without_a_vocabulary(tmp_path):
    family = family_of(model := tiny_model("vit"))
    cpu, sizes = torch.device("cpu"), family.architecture(model)
    found = measured(sizes, torch.float32, cpu, rows=17, levels=1, top_k=8, folder=tmp_path)
    assert found.logits > 0


def test_what_is_no_model_is_refused(tmp_path):
    AutoConfig.for_model("mpnet").save_pretrained(tmp_path / "mpnet")
    with pytest.raises(ModelError, match="mpnet"):
        outline(str(tmp_path / "mpnet"))
    with pytest.raises(ModelError, match="no model at .* there is no such folder"):
        outline(str(tmp_path / "nothing"))


@pytest.mark.parametrize("space", [SPARSE, NARROW], ids=["sparse", "narrow"])
def test_products_of_the_dense_model_are_those_that_torch_counts(space):
    loaded = tiny_loaded()
    run = PlannedRun(context_of(config(space=space), loaded), shared=True)
    length = run.context.untimed_space.cost_model.length
    counted = count_flops(loaded.model, length)
    assert run.products(3 * length, dense=True).products == pytest.approx(3 * counted, rel=1e-6)
    of_head = 2 * 64 * 256 * length
    without = run.products(length, dense=True, head=False).products
    assert without == pytest.approx(counted - of_head, rel=1e-6)
    share = run.products(length).products / counted
    assert share == pytest.approx(1.0) if space is SPARSE else 0.5 < share < 0.9


def test_experts_are_counted_by_the_tokens_that_they_see():
    def statistics(active):
        model = tiny_model("mixtral")
        model.config.num_experts_per_tok = active
        mixture = replace(tiny_loaded("mixtral"), model=model, family=family_of(model))
        stage = library_stage(PlannedRun(context_of(config(space=SPARSE), mixture), shared=True))
        return stage.work.statistics

    experts, layers, tokens = 4, 3, 6 * LENGTH
    # Gate and up read 64 features, down 128.
    of_all = experts * layers * (gram_operations(tokens, 64) + gram_operations(tokens, 128))
    assert statistics(4) - statistics(2) == pytest.approx(of_all / 2)


def test_a_search_compares_each_logit_that_it_asks_for_and_the_dense_models():
    run = PlannedRun(context_of(config(), tiny_loaded()), shared=True)
    assert search_stage(run).work.logits == (4000 + 8 * LENGTH) * 256
    asked = PlannedRun(context_of(config(search={"name": "uniform"}), tiny_loaded()), shared=True)
    assert search_stage(asked).work.logits == (500_000 + 8 * LENGTH) * 256


@pytest.mark.parametrize("space", [SPARSE, NARROW], ids=["sparse", "narrow"])
def test_the_disk_of_a_library_is_that_of_one_that_is_built(tmp_path, checkpoint, space):
    (tmp_path / "text.txt").write_text(TEXT)
    found = config(checkpoint, space, runs=tmp_path / "runs")
    calibration = found.calibration.model_copy(update={"source": str(tmp_path / "text.txt")})
    found = found.model_copy(update={"calibration": calibration})
    plan = make_plan(found, outline(str(checkpoint)), DEVICES["h200"])
    library = api.build_library(found)
    built = sum(file.stat().st_size for file in library.glob("*.safetensors"))
    assert [stage.name for stage in plan.stages] == ["library", "search", "heal"]
    assert plan.stages[0].disk_bytes == built


def test_removal_alone_needs_no_library():
    space = {"drop": {}, "budget": {"body_params": 0.7}}
    plan = make_plan(config(space=space), tiny_loaded(), DEVICES["h100"])
    assert [stage.name for stage in plan.stages] == ["search", "heal"]


@pytest.mark.parametrize("name", DEVICES)
def test_every_device_plans_every_kind_of_space(name):
    for space in (SPARSE, NARROW, {**SPARSE, **NARROW}):
        plan = make_plan(config(space=space), tiny_loaded(), DEVICES[name])
        assert all(0 < plan.seconds(stage) < math.inf for stage in plan.stages)
        rows = plan_rows(plan)
        assert [row[0] for row in rows] == ["stage", "library", "search", "heal", "all"]
        assert len({len(row) for row in rows}) == 1
        assert plan.advice == ()


def test_where_memory_is_short_the_advice_helps():
    loaded = tiny_loaded(layers=40)
    weights = sum(parameter.nbytes for parameter in loaded.model.parameters())
    settings = config(space={"drop": {}, "budget": {"body_params": 0.7}})
    needed = make_plan(settings, loaded, DEVICES["a100"]).stages[0].device_bytes
    small = replace(DEVICES["a100"], name="small", memory=needed - weights // 2)
    plan = make_plan(settings, loaded, small)
    (advice,) = (line for line in plan.advice if line.startswith("search"))
    assert advice in list(plan_notes(plan))
    setting = advice.split("model.device_memory=")[1].split()[0]
    memory = {"source": "m", "device_memory": setting}
    streamed = make_plan(
        settings.model_copy(update={"model": memory_config(memory)}), loaded, small
    )
    assert not [line for line in streamed.advice if line.startswith("search")]
    assert streamed.stages[0].work.brought > plan.stages[0].work.brought == 0


def memory_config(settings):
    return config().model.model_validate(settings)


@pytest.mark.parametrize(
    ("stage", "setting", "changes"),
    [
        ("search", "proxy.targets", {}),
        ("search", "calibration.length", {}),
        ("search", "calibration.search_sequences", {}),
        ("library", "calibration.length", {}),
        ("library", "calibration.library_sequences", {}),
        ("heal", "heal.batch", {"heal": {"batch": 64, "steps": 5}}),
    ],
)
def test_each_advised_setting_alone_is_enough(stage, setting, changes):
    loaded = tiny_loaded()
    calibration = {"library_sequences": 4096, "search_sequences": 4096, "length": 256}
    settings = config(calibration={"source": "text.txt", **calibration}, **changes)
    large = replace(DEVICES["a100"], shared=True)
    stages = make_plan(settings, loaded, large).stages
    needed = {each.name: each.device_bytes + each.main_bytes for each in stages}
    small = replace(large, name="small", memory=int(0.95 * needed[stage]))
    (advice,) = (
        line
        for line in make_plan(settings, loaded, small).advice
        if line.startswith(f"{stage} needs")
    )
    value = next(word for word in advice.split() if word.startswith(f"{setting}=")).split("=")[1]
    section, key = setting.split(".")
    changed = settings.model_dump(exclude_defaults=True)
    changed.setdefault(section, {})[key] = value
    after = make_plan(RunConfig.model_validate(changed), loaded, small)
    assert not [line for line in after.advice if line.startswith(f"{stage} needs")]


def test_where_nothing_is_enough_the_plan_says_so():
    nothing = replace(DEVICES["a100"], name="nothing", memory=1)
    advice = make_plan(config(), tiny_loaded(), nothing).advice
    assert len(advice) == 3
    assert all("no single setting is enough" in line for line in advice)


def test_targets_are_where_the_proxy_keeps_them():
    def stage(**proxy):
        return search_stage(PlannedRun(context_of(config(proxy=proxy), tiny_loaded()), shared=True))

    held = 8 * LENGTH * (8 * 64 + 4)
    memory, disk = stage(top_k=64), stage(top_k=64, targets="disk")
    assert memory.disk_bytes == 0 and disk.disk_bytes == held
    assert memory.device_bytes - disk.device_bytes == held
    # A target for each token of the vocabulary is all that there can be.
    assert stage(top_k=1000).device_bytes == stage(top_k=256).device_bytes
    states, tokens = stage(kind="cosine"), stage(kind="perplexity")
    assert states.work.logits == 0 < tokens.work.logits
    assert states.work.products < tokens.work.products
    assert states.device_bytes < tokens.device_bytes < memory.device_bytes


def test_a_search_says_what_it_needs_before_it_begins():
    first, *advice = preflight(context_of(config(), tiny_loaded()))
    assert first.startswith("needs up to ") and "disk" in first
    assert advice == []


def test_what_a_budget_leaves_of_the_blocks_is_said_beforehand():
    model = tiny_loaded(vocabulary=4096)
    shares = {}
    for bound in (0.9, 0.75):
        space = {"width": {"multiple_of": 8}, "drop": {}, "budget": {"params": bound}}
        (note,) = make_plan(config(space=space), model, DEVICES["h100"]).notes
        *_, searched = preflight(context_of(config(space=space), model))
        assert searched == note
        shares[bound] = note
    costs = context_of(config(), model).space.cost_model.dense()
    outside = 1 - costs["body_params"] / costs["params"]
    for bound, note in shares.items():
        left = (bound - outside) / (1 - outside)
        assert f"{outside:.1%} of it is outside" in note
        assert f"leaves {left:.1%} of the blocks" in note
        assert note.startswith("warning: ") == (left < 0.5)
        assert ("bound body_params instead" in note) == (left < 0.5)
    assert shares[0.75].startswith("warning: ") and not shares[0.9].startswith("warning: ")
    own = {"width": {"multiple_of": 8}, "drop": {}, "budget": {"body_params": 0.4}}
    assert make_plan(config(space=own), model, DEVICES["h100"]).notes == ()


def test_what_serving_takes_is_said_beforehand():
    served = {"context": 64, "batch": 2, "engine": "llama.cpp"}
    space = {"drop": {}, "budget": {"memory": 0.9}, "memory": served}
    *_, note = make_plan(config(space=space), tiny_loaded(), DEVICES["h100"]).notes
    assert preflight(context_of(config(space=space), tiny_loaded()))
    costs = context_of(config(space=space), tiny_loaded()).space.cost_model.dense()
    whole, weights = costs["memory"] / 2**20, costs["weight_bytes"] / 2**20
    found = re.fullmatch(
        r"space.memory: llama.cpp takes ([\d.]+) MiB for the dense model at 64 tokens, batch 2: "
        r"([\d.]+) of weights, ([\d.]+) of cache and ([\d.]+) of its own; "
        r"the bound is ([\d.]+) MiB",
        note,
    )
    told = [float(text) for text in found.groups()]
    assert told[:2] == pytest.approx([whole, weights], abs=0.06)
    assert sum(told[1:4]) == pytest.approx(whole, abs=0.2)
    assert told[4] == pytest.approx(0.9 * whole, abs=0.06)


def test_a_tenth_outside_the_blocks_is_too_little_to_name_unless_little_is_left_of_them():
    for vocabulary, share in (
        (168, 0.09),
        (256, 0.13),
    ):  # shares of the embedding on both sides of a tenth
        model = tiny_loaded(vocabulary=vocabulary)
        costs = context_of(config(), model).space.cost_model.dense()
        outside = 1 - costs["body_params"] / costs["params"]
        assert outside == pytest.approx(share, abs=0.005)
        for bound in (0.45, 0.95):
            space = {"width": {"multiple_of": 8}, "drop": {}, "budget": {"params": bound}}
            notes = make_plan(config(space=space), model, DEVICES["h100"]).notes
            assert len(notes) == (bound < 0.5 or outside >= 0.1)
            assert all(note.startswith("warning: ") == (bound < 0.5) for note in notes)


def gguf_file(path, layers=3):
    gguf = pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(128)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(256)
    writer.add_tensor("token_embd.weight", torch.zeros(256, 64).half().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_is_planned_and_its_unpacking_said(tmp_path):
    path = gguf_file(tmp_path / "model.gguf")
    plan = api.plan(config(path), "h100")
    (note,) = [note for note in plan_notes(plan) if "model.gguf" in note]
    times = plan.weights / path.stat().st_size
    assert plan.dtype == "float32" and f"{times:.1f} times as much" in note
    sketch = outline(str(path))
    assert sketch.family.model_type == "llama" and sketch.model.config.num_hidden_layers == 3
    with pytest.raises(ModelError, match="there is no such file"):
        outline(str(tmp_path / "none.gguf"))
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + b"\xff" * 100)
    with pytest.raises(ModelError, match=r"can be read from .*bad\.gguf") as caught:
        outline(str(tmp_path / "bad.gguf"))
    assert "\n" not in str(caught.value)


def test_the_command_plans_for_here_and_for_others(tmp_path, checkpoint, monkeypatch):
    from evocompress.pipeline.planning import measure

    for name, small in (("COPIED", 2**16), ("WRITTEN", 2**16), ("TURNS", 1), ("SIDE", 64)):
        monkeypatch.setattr(measure, name, small)
    for device in ("here", "l40s"):
        plan = api.plan(config(checkpoint, runs=tmp_path), device)
        assert all(0 < plan.seconds(stage) < math.inf for stage in plan.stages)
        assert plan.device.shared == (device == "here" and not torch.cuda.is_available())
    with pytest.raises(ConfigError, match="unknown device 'h20': did you mean 'h200'"):
        api.plan(config(checkpoint), "h20")
