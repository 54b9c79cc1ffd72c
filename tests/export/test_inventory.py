"""What ``candidate.json`` and the card say of each tensor, against the files themselves."""

import json

import gguf
import pytest
import torch
from safetensors.torch import load_file

from evocompress.compression.library import build_library
from evocompress.core.config import LibraryConfig
from evocompress.core.types import DENSE, DROP, Candidate, Level
from evocompress.export import materialize
from evocompress.export.record import CANDIDATE_FILE, read_record
from evocompress.models.loading import load
from evocompress.testing.tiny import tiny_checkpoint

UP, DOWN, EMBEDDING = (
    "model.layers.2.mlp.up_proj",
    "model.layers.0.mlp.down_proj",
    "model.embed_tokens",
)


def made(folder, model_type, levels):
    """A model, and a library of just these levels of its matrices."""
    loaded = load(str(tiny_checkpoint(folder / "model", model_type)))
    wanted = {name: [DENSE, *own] for name, own in levels.items()}
    tokens = torch.randint(1, 250, (8, 32), generator=torch.Generator().manual_seed(0))
    path = folder / "library"
    return loaded, build_library(loaded, wanted, tokens, "tokens", LibraryConfig(), path, batch=4)


def levels_of(types):
    return {name: [Level(bits=kind)] for name, kind in types.items()}


def candidate_of(types, dropped=()):
    levels = {name: Level(bits=kind) for name, kind in types.items()}
    return Candidate(tuple(sorted((levels | dict.fromkeys(dropped, DROP)).items())))


def row_of(card, role):
    (row,) = (line for line in card.splitlines() if line.startswith(f"| {role} |"))
    return row


def test_types_and_bytes_of_a_gguf_file(tmp_path):
    types = {UP: "q4_0", DOWN: "q8_0", EMBEDDING: "q5_1"}
    loaded, library = made(tmp_path, "llama", levels_of(types))
    candidate = candidate_of(types, dropped=["model.layers.1.mlp"])
    out = materialize(loaded, library, candidate, tmp_path / "out", format="gguf")
    found = read_record(out).tensors
    expected = {"blk.2.ffn_up.weight": "q4_0", "blk.0.ffn_down.weight": "q8_0"}
    expected |= {"token_embd.weight": "q5_1", "blk.0.ffn_up.weight": "f32"}
    assert {name: found[name].type for name in expected} == expected
    rows, columns = loaded.model.get_submodule(UP).weight.shape
    assert found["blk.2.ffn_up.weight"].bytes == rows * columns // 32 * 18
    reader = gguf.GGUFReader(out / "model.gguf")
    padded = sum(-(-one.bytes // reader.alignment) * reader.alignment for one in found.values())
    assert padded == (out / "model.gguf").stat().st_size - reader.data_offset
    card = (out / "README.md").read_text()
    mib = found["blk.2.ffn_up.weight"].bytes / 2**20
    assert f"1 ({mib:.2f} MiB)" in row_of(card, "ffn_up")
    assert "1 q8_0, 1 q5_1, 1 q4_0;" in card


def data_bytes(folder):
    (path,) = folder.glob("*.safetensors")
    return path.stat().st_size - 8 - int.from_bytes(path.read_bytes()[:8], "little")


@pytest.mark.parametrize("form", ["compressed-tensors", "stock"])
def test_types_and_bytes_of_safetensors(form, tmp_path):
    types = {UP: "w3g32", DOWN: "w8a8"}
    loaded, library = made(tmp_path, "llama", levels_of(types))
    # Blocks that come after one that is gone have other numbers in the file.
    candidate = candidate_of(types, dropped=["model.layers.1.attention", "model.layers.1.mlp"])
    out = materialize(loaded, library, candidate, tmp_path / "out", format=form)
    found, tensors = read_record(out).tensors, load_file(out / "model.safetensors")
    assert sum(one.bytes for one in found.values()) == data_bytes(out)
    up, down = (found[f"model.layers.{i}.mlp.{n}_proj.weight"] for i, n in ((1, "up"), (0, "down")))
    packed = form == "compressed-tensors"
    assert (up.type, down.type) == (("w3g32", "w8a8") if packed else ("f32", "f32"))
    assert (up.values, down.values) == (("", "") if packed else ("w3g32", "w8a8"))
    own = [t.nbytes for n, t in tensors.items() if n.startswith("model.layers.1.mlp.up_proj.")]
    assert up.bytes == sum(own) and len(own) == (3 if packed else 1)
    assert {one.values for one in found.values()} == {"", up.values, down.values}
    card = (out / "README.md").read_text()
    assert ("| f32 (values of w8a8) |" in card) is not packed
    assert row_of(card, "all").count("MiB") == 3 and row_of(card, "up_proj").count("MiB") == 2


@pytest.mark.parametrize(
    ("model_type", "above", "up"),
    [
        ("qwen2_moe", "model.layers.1.mlp.experts", {"", "q8_0", "q4_0"}),
        ("granitemoe", "model.layers.1.block_sparse_moe.experts", {"q4_0, q8_0"}),
    ],
)
def test_experts_have_the_values_of_their_types_also_in_one_tensor(model_type, above, up, tmp_path):
    types = {f"{above}.0.up_proj": "q8_0", f"{above}.1.up_proj": "q4_0"}
    types |= {f"{above}.1.down_proj": "q5_0"}
    loaded, library = made(tmp_path, model_type, levels_of(types))
    out = materialize(loaded, library, candidate_of(types), tmp_path / "out", format="stock")
    found = read_record(out).tensors
    assert sum(one.bytes for one in found.values()) == data_bytes(out)
    inside = {n: t.values for n, t in found.items() if n.startswith(above.rpartition(".")[0])}
    assert set(inside.values()) == up | {"", "q5_0"}
    assert {t.values for n, t in found.items() if n not in inside} == {""}
    assert len([own for own in inside.values() if own == "q5_0"]) == 1


def test_nothing_is_said_without_types_and_older_records_are_read(tmp_path):
    loaded = load(str(tiny_checkpoint(tmp_path / "model", "llama")))
    out = materialize(loaded, None, Candidate(), tmp_path / "out")
    assert read_record(out).tensors == {} and "by role" not in (out / "README.md").read_text()
    record = json.loads((out / CANDIDATE_FILE).read_text())
    older = {key: value for key, value in record.items() if key not in ("tensors", "xxh3")}
    (out / CANDIDATE_FILE).write_text(json.dumps(older))
    assert read_record(out).tensors == {}
