"""GGUF files whose tensors have types of their own, against the candidate in memory."""

from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch

from evocompress.compression.library import build_library
from evocompress.compression.live_model import LiveModel
from evocompress.core.canonical import canonical
from evocompress.core.config import LibraryConfig, SpaceConfig
from evocompress.core.errors import BudgetError, ExportError
from evocompress.core.types import DENSE, DROP, Candidate, Level
from evocompress.export import materialize
from evocompress.export.formats import file_layout_of, type_rules_of
from evocompress.export.gguf_size import room_for_lists
from evocompress.export.parts import PARTS_FILE
from evocompress.export.record import read_record, write_record
from evocompress.models.families.outer import every_unit
from evocompress.models.loading import load
from evocompress.pipeline.planning.outline import outline
from evocompress.space.build import build_space
from evocompress.testing.gguf_reference import GgufReference
from evocompress.testing.tiny import tiny_checkpoint, tiny_loaded

TYPES = ("q4_0", "q8_0", "q5_1")
NARROW = Level(channels=64)


def matrices(loaded):
    return [unit for unit in loaded.family.units(loaded.model) if unit.kind == "matrix"]


def tied(folder, model_type):
    """A model whose head is its embedding, and whose mixtures are as llama.cpp has them."""
    loaded = load(str(tiny_checkpoint(folder / "untied", model_type)))
    loaded.model.config.tie_word_embeddings = True
    loaded.model.config.norm_topk_prob = True
    loaded.model.tie_weights()
    for part in (loaded.model, loaded.tokenizer):
        part.save_pretrained(folder / "model")
    return load(str(folder / "model"))


def untied(folder):
    """A Llama with a head of its own."""
    loaded = load(str(tiny_checkpoint(folder / "tied")))
    loaded.model.config.tie_word_embeddings = False
    loaded.model.lm_head.weight = torch.nn.Parameter(loaded.model.lm_head.weight.flip(0))
    for part in (loaded.model, loaded.tokenizer):
        part.save_pretrained(folder / "model")
    return load(str(folder / "model"))


def made(folder, model_type, levels, dropped=(), head_tied=True):
    """A model, a library of its matrices at all types, and a candidate with these levels."""
    loaded = tied(folder, model_type) if head_tied else untied(folder)
    mlps = [u.name for u in loaded.family.units(loaded.model) if u.kind == "mlp" and not u.active]
    names = [unit.name for unit in matrices(loaded)] + list(outside(loaded).values())
    wanted = {name: [DENSE, *(Level(bits=t) for t in TYPES)] for name in names}
    wanted |= dict.fromkeys(mlps, [DENSE, NARROW])
    tokens = torch.randint(1, 250, (8, 32), generator=torch.Generator().manual_seed(0))
    config, path = LibraryConfig(width_criterion="magnitude"), folder / "library"
    library = build_library(loaded, wanted, tokens, "tokens", config, path, batch=4)
    gone = {name: DROP for name in dropped}
    below = tuple(f"{name}." for name in dropped)
    chosen = {n: lv for n, lv in levels(loaded).items() if not f"{n}.".startswith(below or ("-",))}
    return loaded, library, Candidate(tuple(sorted((chosen | gone).items())))


def outside(loaded):
    """The embedding and the head, which may be one."""
    every = every_unit(loaded.family, loaded.model)
    return {unit.role: unit.name for unit in every if unit.kind == "outer"}


def every_type(loaded):
    return {u.name: Level(bits=TYPES[i % 3]) for i, u in enumerate(matrices(loaded))}


def narrowed(loaded):
    return every_type(loaded) | {"model.layers.1.mlp": NARROW}


def partly(loaded):
    return {u.name: Level(bits="q4_0") for u in matrices(loaded) if u.role.endswith("down_proj")}


def assert_as_in_memory(loaded, library, candidate, file):
    ids = torch.arange(1, 30)
    with LiveModel(loaded, library) as live, torch.no_grad():
        live.apply(candidate)
        expected = loaded.model(ids[None]).logits[0].double().numpy()
    found = GgufReference(file).logits(ids.numpy())
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def types_in(file):
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}


@pytest.mark.parametrize("levels", [every_type, narrowed, partly], ids=lambda f: f.__name__)
@pytest.mark.parametrize("dropped", [(), ("model.layers.1.attention",)], ids=["whole", "dropped"])
def test_each_tensor_has_its_type(levels, dropped, tmp_path):
    loaded, library, candidate = made(tmp_path, "llama", levels, dropped)
    out = materialize(loaded, library, candidate, tmp_path / "out", format="gguf")
    assert_as_in_memory(loaded, library, candidate, out / "model.gguf")
    found = types_in(out / "model.gguf")
    assert (
        found["blk.2.ffn_down.weight"]
        == candidate.by_name["model.layers.2.mlp.down_proj"].bits.upper()
    )
    assert found["token_embd.weight"] == "F32"


@pytest.mark.parametrize("head_tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("levels", [every_type, narrowed], ids=lambda f: f.__name__)
def test_embedding_and_head_have_their_types(head_tied, levels, tmp_path):
    """Against a model whose embedding, and head, are what `gguf` reads of the file."""

    def chosen(loaded):
        types = {"embedding": "q4_0", "head": "q5_1"}
        return levels(loaded) | {n: Level(bits=types[role]) for role, n in outside(loaded).items()}

    loaded, library, candidate = made(tmp_path, "llama", chosen, head_tied=head_tied)
    out = materialize(loaded, library, candidate, tmp_path / "out", format="gguf")
    found = {t.name: t for t in gguf.GGUFReader(out / "model.gguf").tensors}
    assert found["token_embd.weight"].tensor_type.name == "Q4_0"
    assert ("output.weight" in found) is not head_tied
    read = {n: gguf.dequantize(t.data, t.tensor_type) for n, t in found.items()}
    ids = torch.arange(1, 30)[None]
    inside = tuple(each for each in candidate.levels if each[0] not in outside(loaded).values())
    with LiveModel(loaded, library) as live, torch.no_grad():
        live.apply(candidate)
        logits = loaded.model(ids).logits
        live.apply(Candidate(inside))
        for role, name in outside(loaded).items():
            weight = read["output.weight" if role == "head" else "token_embd.weight"]
            loaded.model.get_parameter(f"{name}.weight").data = torch.tensor(weight)
        assert torch.equal(loaded.model(ids).logits, logits)
    assert_as_in_memory(loaded, library, candidate, out / "model.gguf")


def test_matrices_that_are_one_tensor_have_one_type(tmp_path):
    loaded, library, candidate = made(tmp_path, "qwen3", narrowed)
    with pytest.raises(ExportError, match=r"attn_qkv.weight would be of types .* one type there"):
        materialize(loaded, library, candidate, tmp_path / "out", format="gguf")
    assert not (tmp_path / "out").exists()


def by_word(loaded):
    """Types by the words of what a space ties."""
    words = type_rules_of("gguf", loaded, uneven=True).tied
    own = {unit.name: words.get(unit.name, unit.name) for unit in matrices(loaded)}
    places = {word: place for place, word in enumerate(dict.fromkeys(own.values()))}
    return {name: Level(bits=TYPES[places[word] % 3]) for name, word in own.items()}


def test_queries_keys_and_values_of_one_tensor_are_tied(tmp_path):
    def levels(loaded):
        return by_word(loaded) | {"model.layers.1.mlp": NARROW}

    loaded, library, candidate = made(tmp_path, "qwen3", levels)
    out = materialize(loaded, library, candidate, tmp_path / "out", format="gguf")
    assert_as_in_memory(loaded, library, candidate, out / "model.gguf")


def test_the_experts_of_a_block_are_tied(tmp_path):
    loaded, library, candidate = made(tmp_path, "qwen3_moe", by_word)
    out = materialize(loaded, library, candidate, tmp_path / "out", format="gguf")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(out / "model.gguf").tensors}
    for role, name in (("gate", "gate_proj"), ("up", "up_proj"), ("down", "down_proj")):
        stored = tensors[f"blk.1.ffn_{role}_exps.weight"]
        found = gguf.dequantize(stored.data, stored.tensor_type)
        for expert, weight in enumerate(found):
            unit = f"model.layers.1.mlp.experts.{expert}.{name}"
            level = candidate.by_name[unit]
            assert stored.tensor_type.name == level.bits.upper()
            assert np.array_equal(weight, library.load(unit, level)["weight"].numpy())
    mixed = dict(candidate.levels) | {"model.layers.1.mlp.experts.0.up_proj": Level(bits="q8_0")}
    assert mixed != dict(candidate.levels)
    with pytest.raises(ExportError, match=r"one tensor has one type there; search with .*fits"):
        other = Candidate(tuple(sorted(mixed.items())))
        materialize(loaded, library, other, tmp_path / "mixed", format="gguf")


def test_healed_weights_are_rounded_to_the_same_types(tmp_path, caplog):
    loaded, library, candidate = made(tmp_path, "llama", every_type)
    first = materialize(loaded, library, candidate, tmp_path / "stock", format="stock")
    plain = materialize(loaded, library, candidate, tmp_path / "plain", format="gguf")
    exact = materialize(loaded, None, candidate, tmp_path / "exact", format="gguf", healed=first)
    assert (exact / "model.gguf").read_bytes() == (plain / "model.gguf").read_bytes()
    assert not caplog.text
    (first / PARTS_FILE).unlink()
    write_record(first, read_record(first))  # as older versions wrote it
    out = materialize(loaded, None, candidate, tmp_path / "out", format="gguf", healed=first)
    assert types_in(out / "model.gguf") == types_in(plain / "model.gguf")
    anew = (out / "model.gguf").read_bytes()
    assert "were rounded to their types anew, each weight to the nearest value" in caplog.text
    assert_as_in_memory(loaded, library, candidate, plain / "model.gguf")
    materialize(loaded, library, candidate, out, format="gguf", healed=first, overwrite=True)
    assert (out / "model.gguf").read_bytes() == (plain / "model.gguf").read_bytes() != anew


def test_weights_healed_in_the_type_of_the_files_are_the_librarys(tmp_path):
    """Bfloat16 is computed in float32 on many processors, and written as bfloat16."""
    loaded, library, candidate = made(tmp_path, "llama", every_type)
    loaded = replace(loaded, widened=torch.bfloat16)
    first = materialize(loaded, library, candidate, tmp_path / "stock", format="stock")
    files = [
        materialize(loaded, library, candidate, tmp_path / name, format="gguf", healed=healed)
        for name, healed in (("plain", None), ("healed", first))
    ]
    tensors = [gguf.GGUFReader(file / "model.gguf").tensors for file in files]
    for one, other in zip(*tensors, strict=True):
        if one.tensor_type.name.startswith("Q"):
            assert np.array_equal(one.data, other.data), one.name


def test_what_a_file_holds_in_another_form_has_no_type():
    rules = [
        type_rules_of("gguf", tiny_loaded("granite"), uneven=uneven) for uneven in (False, True)
    ]
    assert not rules[0].untyped
    assert rules[1].untyped == {
        unit.name for unit in matrices(tiny_loaded("granite")) if unit.role.endswith("q_proj")
    }


def test_an_outline_of_a_checkpoint_has_the_rules_of_the_model(tmp_path):
    path = str(tiny_checkpoint(tmp_path / "model", "llama"))
    found = [
        type_rules_of("gguf", loaded, uneven=True) for loaded in (outline(path, "auto"), load(path))
    ]
    assert found[0] == found[1]


def test_other_formats_hold_the_rounded_weights(tmp_path):
    from transformers import AutoModelForCausalLM

    loaded, library, candidate = made(tmp_path, "llama", every_type)
    out = materialize(loaded, library, candidate, tmp_path / "out", format="stock")
    model = AutoModelForCausalLM.from_pretrained(out)
    ids = torch.arange(1, 30)[None]
    with LiveModel(loaded, library) as live, torch.no_grad():
        live.apply(candidate)
        assert torch.equal(model(ids).logits, loaded.model(ids).logits)


def foretold(loaded, candidates, **space):
    """``file_bytes`` of candidates by the cost model of a space."""
    uneven = "drop" in space or "uniform" not in space.get("width", {"uniform": True})
    units = every_unit(loaded.family, loaded.model)
    built = build_space(
        units,
        replace(loaded.family.architecture(loaded.model), dtype_bytes=4),
        SpaceConfig.model_validate(space),
        file=file_layout_of("gguf", loaded, uneven=uneven),
    )
    each = [built.costs(built.genome(one)[None])["file_bytes"].item() for one in candidates]
    assert built.cost_model.of(candidates)["file_bytes"].tolist() == each
    return each


def written_bytes(loaded, library, candidate, out):
    told = {"file_bytes": 0}
    made = materialize(loaded, library, candidate, out, format="gguf", predicted=told)
    size = (made / "model.gguf").stat().st_size
    assert read_record(made).measured["file_bytes"] == size
    return size


BITS = {"bits": {"types": ["dense", *TYPES], "scope": ["matrices", "embeddings", "head"]}}


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "qwen3_moe", "gemma3_text", "untied"])
def test_the_size_of_a_file_is_foretold_to_the_byte(model_type, tmp_path):
    head_tied = model_type != "untied"
    name = model_type if head_tied else "llama"
    loaded, library, _ = made(tmp_path, name, by_word, head_tied=head_tied)
    rules, outer = type_rules_of("gguf", loaded, uneven=False), outside(loaded).values()
    inside = {n: lv for n, lv in by_word(loaded).items() if n not in rules.untyped}
    candidates = [
        Candidate(tuple(sorted(levels.items())))
        for levels in ({}, inside, inside | {n: Level(bits="q5_1") for n in outer})
    ]
    found = foretold(loaded, candidates, **BITS)
    sizes = [
        written_bytes(loaded, library, candidate, tmp_path / f"out{place}")
        for place, candidate in enumerate(candidates)
    ]
    assert found == sizes and len(set(sizes)) == 3


@pytest.mark.parametrize(
    ("share", "wrong"), [(0.95, "is met by every"), (0.05, "cannot be reached")]
)
def test_a_bound_outside_of_the_range_of_files_is_refused_with_it(share, wrong):
    space = {"bits": {"types": ["q8_0", "q4_0"]}, "budget": {"file_bytes": share}}
    with pytest.raises(BudgetError, match=f"file_bytes.*{wrong}.*this space spans .* MiB"):
        foretold(tiny_loaded(), [], **space)


def test_widths_that_all_layers_share_are_foretold_to_the_byte(tmp_path):
    loaded, library, _ = made(tmp_path, "llama", every_type)
    narrow = {f"model.layers.{block}.mlp": NARROW for block in range(3)}
    candidate = Candidate(tuple(sorted((every_type(loaded) | narrow).items())))
    space = BITS | {"width": {"channels": [64], "units": ["mlp"], "uniform": True}}
    found = foretold(loaded, [candidate], **space)
    assert found == [written_bytes(loaded, library, candidate, tmp_path / "out")]


def test_drops_and_widths_are_foretold_from_above(tmp_path):
    """By what a header may take for lists, and zeros where both sub-layers of a block are gone."""
    loaded, library, _ = made(tmp_path, "llama", every_type)
    path, every = "model.layers", every_type(loaded)
    changes = [
        {f"{path}.1.mlp": NARROW},
        {f"{path}.1.attention": DROP},
        {f"{path}.2.mlp": DROP, f"{path}.0.mlp": NARROW},
        {f"{path}.1.attention": DROP, f"{path}.1.mlp": DROP},
    ]
    units = every_unit(loaded.family, loaded.model)
    candidates = [canonical(every | change, units) for change in changes]
    width = {"channels": [64], "units": ["mlp"], "protect": []}
    found = foretold(loaded, candidates, **BITS, drop={"protect": []}, width=width)
    room = room_for_lists(loaded)
    zeros = file_layout_of("gguf", loaded, uneven=True).absent["mlp"]
    for place, (candidate, told) in enumerate(zip(candidates, found, strict=True)):
        size = written_bytes(loaded, library, candidate, tmp_path / f"out{place}")
        assert 0 <= told - size - zeros * (place == 3) <= room + 64, place
