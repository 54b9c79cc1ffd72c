from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from export_cases import ZeroingLibrary, applied, mixed_candidate
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

import evocompress.hf  # noqa: F401
from evocompress.core.errors import ExportError, LibraryError
from evocompress.core.types import DROP, Candidate, Level
from evocompress.export import FORMATS, materialize, read_candidate, read_record
from evocompress.models.loading import LoadedModel, fingerprint
from evocompress.space.costs import cost_model
from evocompress.testing.derived import typical_config, typical_loaded
from evocompress.testing.formats import candidate_of, reload, with_bias, with_zeros
from evocompress.testing.plain_library import PlainLibrary
from evocompress.testing.probes import answer, random_batch
from evocompress.testing.staged import has_packages
from evocompress.testing.tiny import NAMES, declared, tiny_loaded

LOAD_REMOTE_CODE = """
import sys
from pathlib import Path
import transformers
from safetensors.torch import load_file, save_file
for folder in map(Path, sys.argv[1:]):
    batch = load_file(folder / "batch.safetensors")["batch"]
    auto = getattr(transformers, (folder / "auto").read_text())
    model = auto.from_pretrained(folder, trust_remote_code=True)
    body = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True)
    tensors = {"first": model(batch)[0], "hidden": body(batch).last_hidden_state}
    save_file(tensors, folder / "remote.safetensors")
assert "evocompress" not in sys.modules
"""


@pytest.mark.parametrize("format", ["stock", "hf"])
def test_reloaded_checkpoint_equals_candidate_in_memory(
    loaded: LoadedModel, tmp_path: Path, format: str
) -> None:
    library = ZeroingLibrary(loaded.model)
    candidate = mixed_candidate(loaded, single_drops=format == "hf")
    before = fingerprint(loaded.model)
    out = materialize(loaded, library, candidate, tmp_path / "out")
    assert read_record(out).format == format
    model, family = reload(out, loaded.family.task), loaded.family
    batch, expected = random_batch(family, loaded.model), applied(loaded, library, candidate)
    assert torch.equal(answer(family, model, batch), answer(family, expected, batch))
    gone = format == "stock" or loaded.family.model_type == "resnet"
    numbers = len(loaded.family.blocks(loaded.model)) - gone
    assert model.config.num_hidden_layers == numbers
    assert fingerprint(loaded.model) == before


@pytest.mark.long
def test_both_ways_of_loading_agree(tmp_path: Path) -> None:
    folders = []
    names = filter(has_packages, NAMES)
    forms = [*((name, "hf") for name in names), ("llama", "folded"), ("llama", "deci")]
    for name, form in forms:
        loaded = tiny_loaded(name, layers=4)
        if name == "resnet":
            candidate = narrow_resnet(loaded)
        else:
            candidate = candidate_of(loaded, with_zeros(loaded, with_bias(loaded)))
        out = tmp_path / f"{name}_{form}"
        folders.append(materialize(loaded, PlainLibrary(loaded), candidate, out, format=form))
        batch = random_batch(loaded.family, loaded.model, 1)
        save_file({"batch": batch}, out / "batch.safetensors")
        (out / "auto").write_text(loaded.family.task.auto.__name__)
    command = [sys.executable, "-c", LOAD_REMOTE_CODE, *folders]
    subprocess.run(command, check=True, cwd=tmp_path, timeout=240)
    for folder, (name, _) in zip(folders, forms, strict=True):
        remote = load_file(folder / "remote.safetensors")
        batch = load_file(folder / "batch.safetensors")["batch"]
        for extra in ("remote.safetensors", "batch.safetensors"):
            (folder / extra).unlink()
        model, body = reload(folder, declared(name).task), AutoModel.from_pretrained(folder)
        # Last digits depend on the number of threads, which may differ between processes.
        close = {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(model(batch)[0], remote["first"], **close)
        torch.testing.assert_close(body(batch).last_hidden_state, remote["hidden"], **close)


def narrow_resnet(loaded: LoadedModel) -> Candidate:
    """Narrow branches, one with a bias, and one left out."""
    levels = (Level(channels=3), Level(channels=5, bias=True), DROP)
    names = (f"{loaded.family.block_names[index]}.mlp" for index in (0, 1, 3))
    return Candidate(tuple(zip(names, levels, strict=True)))


def test_removed_weights_are_absent_from_the_files(llama: LoadedModel, tmp_path: Path) -> None:
    candidate = Candidate((("model.layers.2.attention", DROP),))
    out = materialize(llama, None, candidate, tmp_path / "out")
    names = set(load_file(out / "model.safetensors"))
    gone = {n for n in llama.model.state_dict() if n.startswith("model.layers.2.self_attn.")}
    gone |= {"model.layers.2.input_layernorm.weight", "lm_head.weight"}
    assert names == set(llama.model.state_dict()) - gone


def test_tied_weights_stay_tied(llama: LoadedModel, tmp_path: Path) -> None:
    out = materialize(llama, None, Candidate(), tmp_path / "out")
    model = reload(out)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_record_holds_predicted_and_measured_costs(llama: LoadedModel, tmp_path: Path) -> None:
    candidate = mixed_candidate(llama)
    library = ZeroingLibrary(llama.model)
    out = materialize(llama, library, candidate, tmp_path / "out", predicted={"params": 7.0})
    record = read_record(out)
    model = reload(out)
    zeros = sum(level.zeros for _, level in candidate.levels)
    params = sum(weight.numel() for weight in model.parameters())
    assert record.predicted == {"params": 7.0}
    assert record.measured["params"] == params
    assert record.measured["nonzeros"] == params - zeros
    assert record.measured["weight_bytes"] == 4 * params
    assert record.measured["body_params"] == sum(w.numel() for w in model.model.layers.parameters())
    matrices = sum(w.numel() for w in model.model.layers.parameters() if w.ndim == 2)
    assert record.measured["matrix_nonzeros"] == matrices - zeros
    assert record.library_fingerprint == library.fingerprint
    assert record.model_fingerprint == llama.fingerprint
    assert (record.id, read_candidate(out)) == (candidate.id, candidate)


def test_measured_costs_are_those_of_the_cost_model(loaded: LoadedModel, tmp_path: Path) -> None:
    library, candidate = ZeroingLibrary(loaded.model), mixed_candidate(loaded)
    # Zeros elsewhere are none of the cost model's.
    next(p for p in loaded.model.parameters() if p.ndim == 1).zero_()
    out = materialize(loaded, library, candidate, tmp_path / "out")
    family, model = loaded.family, loaded.model
    costs = cost_model(family.units(model), family.architecture(model)).of([candidate])
    measured = read_record(out).measured
    assert measured == {name: costs[name].item() for name in measured}


@pytest.mark.parametrize(
    ("format", "gone"),
    {"hf": "0.attention", "stock": "0.attention 0.mlp", "padded": "0.attention 0.mlp"}.items(),
)
def test_what_stays_in_some_blocks_only_is_outside_in_those(
    format: str, gone: str, tmp_path: Path
) -> None:
    """A norm that a shared expert reads as well is of no sub-layer; elsewhere it is the MLP's."""
    loaded = typical_loaded(typical_config("axk2"))
    family, norm = loaded.family, "post_attention_layernorm"
    assert [norm in family.at(index).shared for index in range(3)] == [False, True, True]
    candidate = Candidate(tuple((f"model.layers.{name}", DROP) for name in gone.split()))
    out = materialize(loaded, None, candidate, tmp_path / "out", format=format)
    costs = cost_model(family.units(loaded.model), family.architecture(loaded.model))
    predicted = costs.of([candidate])["body_params"].item()
    assert read_record(out).measured["body_params"] == predicted


def test_tokenizer_and_generation_config_are_kept(llama: LoadedModel, tmp_path: Path) -> None:
    llama.model.generation_config.repetition_penalty = 1.5
    candidate = Candidate((("model.layers.2.mlp", DROP),))
    out = materialize(llama, None, candidate, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer("Hello.")["input_ids"] == llama.tokenizer("Hello.")["input_ids"]
    assert reload(out).generation_config.repetition_penalty == 1.5


def test_card_tells_what_was_done_and_how_to_load(llama: LoadedModel, tmp_path: Path) -> None:
    library, candidate = ZeroingLibrary(llama.model), mixed_candidate(llama)
    out = materialize(llama, library, candidate, tmp_path / "out", notes=["Held-out KL 0.5."])
    card = (out / "README.md").read_text()
    for text in (
        "tiny:llama",
        "Removed attention sub-layers of the dense model's blocks: 0, 1.",
        "(50.0%)",
        "make nothing faster",
        "import evocompress.hf",
        "trust_remote_code=True",
        "Held-out KL 0.5.",
    ):
        assert text in card


def test_card_shows_latencies_in_milliseconds(llama: LoadedModel, tmp_path: Path) -> None:
    costs = {"params": 1_000_000.0, "latency": 0.0123456}
    out = materialize(llama, None, Candidate(), tmp_path / "out", predicted=costs)
    card = (out / "README.md").read_text()
    assert "| latency | 12.35 ms |  |" in card
    assert f"| params | 1,000,000 | {read_record(out).measured['params']:,} |" in card


def test_stock_refuses_a_single_sub_layer(llama: LoadedModel, tmp_path: Path) -> None:
    candidate = Candidate((("model.layers.2.mlp", DROP),))
    with pytest.raises(ExportError, match=r"leave out model\.layers\.2\.mlp alone: formats 'hf'"):
        materialize(llama, None, candidate, tmp_path / "out", format="stock")
    assert not any(tmp_path.iterdir())


def test_blocks_that_know_their_index_are_kept_in_place(ids: Tensor, tmp_path: Path) -> None:
    loaded = tiny_loaded("gpt2", layers=4)
    for index, block in enumerate(loaded.model.transformer.h):
        block.attn.scaling /= index + 1
    loaded.model.config.scale_attn_by_inverse_layer_idx = True
    library, candidate = ZeroingLibrary(loaded.model), mixed_candidate(loaded, single_drops=False)
    with pytest.raises(
        ExportError, match=r"transformer\.h\.1\.attention.* formats 'hf', 'padded' can"
    ):
        materialize(loaded, library, candidate, tmp_path / "out", format="stock")
    expected = applied(loaded, library, candidate)(ids).logits
    for format in ("hf", "padded"):
        model = reload(materialize(loaded, library, candidate, tmp_path / format, format=format))
        assert model.config.num_hidden_layers == 4
        torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("format", ["auto", *FORMATS.built_in])
def test_a_model_without_any_block_is_refused(
    llama: LoadedModel, tmp_path: Path, format: str
) -> None:
    sublayers = (f"model.layers.{i}.{kind}" for i in range(4) for kind in ("attention", "mlp"))
    candidate = Candidate(tuple((name, DROP) for name in sublayers))
    with pytest.raises(ExportError, match="every block, .*: no format can") as caught:
        materialize(llama, None, candidate, tmp_path / "out", format=format)
    assert "\n" not in str(caught.value)


def test_compressed_matrices_need_a_library(llama: LoadedModel, tmp_path: Path) -> None:
    candidate = Candidate((("model.layers.0.mlp.up_proj", Level(zeros=8)),))
    with pytest.raises(LibraryError, match="needs a level library: give one"):
        materialize(llama, None, candidate, tmp_path / "out")


def test_unknown_format_is_named(llama: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match="unknown format 'onnx': choose one of auto, stock, hf, padded"
    ):
        materialize(llama, None, Candidate(), tmp_path / "out", format="onnx")


def test_existing_folder_is_replaced_only_when_asked(llama: LoadedModel, tmp_path: Path) -> None:
    out = materialize(llama, None, Candidate(), tmp_path / "out")
    dropped = Candidate((("model.layers.2.mlp", DROP),))
    with pytest.raises(ExportError, match="exists"):
        materialize(llama, None, dropped, out)
    assert read_candidate(out) == Candidate()
    materialize(llama, None, dropped, out, overwrite=True)
    assert read_candidate(out) == dropped
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_foreign_folder_is_never_replaced(llama: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ExportError, match="not a checkpoint of this program"):
        materialize(llama, None, Candidate(), tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


def test_too_little_room_is_noticed_before_writing(
    llama: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
    with pytest.raises(ExportError, match=r"needs 6\d MiB and 1 MiB are free"):
        materialize(llama, None, Candidate(), tmp_path / "new" / "out")
    assert not any(tmp_path.iterdir())


def test_full_disk_leaves_nothing_behind(
    llama: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("written")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(llama.tokenizer, "save_pretrained", fail)
    with pytest.raises(ExportError, match="disk full while writing"):
        materialize(llama, None, Candidate(), tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_damaged_record_is_an_export_error(llama: LoadedModel, tmp_path: Path) -> None:
    out = materialize(llama, None, Candidate(), tmp_path / "out")
    whole = json.loads((out / "candidate.json").read_text())
    del whole["xxh3"]
    for change in (
        {"levels": None},
        {"levels": {"model.layers.0.mlp": {"drop": 1}}},
        {"levels": {"model.layers.0.mlp": {"dropped": True}}},
        {"levels": {"model.layers.0.mlp": {"zeros": 0}}},
        {"files": [1]},
        {"id": None},
    ):
        (out / "candidate.json").write_text(json.dumps(whole | change))
        with pytest.raises(ExportError, match="candidate.json is damaged"):
            read_candidate(out)
    for text in ('{"id": "x"}', "null", "[]", "{", "\xff"):
        (out / "candidate.json").write_text(text, encoding="latin1")
        with pytest.raises(ExportError, match="candidate.json is damaged"):
            read_candidate(out)
    with pytest.raises(ExportError, match="has no candidate.json"):
        read_candidate(tmp_path)
