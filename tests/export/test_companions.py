"""What comes from the dense model's folder, and which code a checkpoint names."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from export_cases import write
from huggingface_hub.utils import filter_repo_objects
from tokenizers import AddedToken, Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import evocompress.hf  # noqa: F401
from evocompress.export.companions import CODED, is_terms
from evocompress.models.checkpoints import HUB_FILES
from evocompress.models.loading import LoadedModel, load
from evocompress.testing.byte_tokenizers import TEXTS, trained_tokenizer
from evocompress.testing.formats import candidate_of, uneven
from evocompress.testing.tiny import stock_model, tiny_loaded, windowless

SOURCE = {
    "tokenizer.model": "pieces",
    "merges.txt": "#version: 0.2",
    "vocab.json": "{}",
    "chat_template.jinja": "{{ messages }}",
    "additional_chat_templates/tools.jinja": "{{ tools }}",
    "LICENSE": "for anyone",
    "NOTICE.txt": "of whom",
    "USE_POLICY.md": "nothing evil",
    "LICENSE_AGREEMENT.md": "signed",
    "THIRD_PARTY_NOTICES.txt": "of whom else",
    "gemma_license.txt": "for many",
    "MODEL_LICENSE": "for some",
    "license-code.md": "for all",
}
"""Files that must be in a checkpoint as they were."""


def dense_folder(folder: Path, *, tokenizer_class: str = "PreTrainedTokenizerFast") -> Path:
    """A checkpoint as its authors published it, with a tokenizer as transformers 4 writes it."""
    stock_model("llama", layers=4, vocabulary=640).save_pretrained(folder)
    tokenizer = trained_tokenizer("qwen2")
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": tokenizer_class,
        "eos_token": tokenizer.eos_token,
        "additional_special_tokens": [tokenizer.eos_token],
        "model_max_length": 512,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "README.md").write_text("The dense model.")
    (folder / "additional_chat_templates").mkdir()
    for name, text in SOURCE.items():
        if tokenizer_class == "PreTrainedTokenizerFast" or not name.startswith(("vocab", "merges")):
            (folder / name).write_text(text)
    return folder


def loaded_from(folder: Path) -> LoadedModel:
    return load(str(folder), dtype="float32", device="cpu")


@pytest.mark.parametrize("form", ["stock", "hf", "padded", "folded", "deci"])
def test_the_source_s_files_are_in_every_format(form: str, tmp_path: Path) -> None:
    source = dense_folder(tmp_path / "dense")
    loaded = loaded_from(source)
    out = write(loaded, candidate_of(loaded, {}), tmp_path / "out", form)
    for name in (*SOURCE, "tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes(), name
    assert (out / "README.dense.md").read_text() == "The dense model."
    assert "Compressed model" in (out / "README.md").read_text()
    assert_same_ids(source, out)


def test_a_gguf_file_comes_with_the_licence(tmp_path: Path) -> None:
    loaded = loaded_from(dense_folder(tmp_path / "dense"))
    out = write(loaded, candidate_of(loaded, {}), tmp_path / "out", "gguf")
    assert (out / "LICENSE").read_text() == "for anyone"
    assert (out / "README.dense.md").exists()


def test_a_pre_tokenizer_that_its_class_does_not_have_stays(tmp_path: Path) -> None:
    # transformers 5 makes the steps of this class anew, whatever tokenizer.json says.
    source = dense_folder(tmp_path / "dense", tokenizer_class="Qwen2Tokenizer")
    described = json.loads((source / "tokenizer.json").read_text())
    described["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": r"\p{L}|[^\p{L}]+"}
    (source / "tokenizer.json").write_text(json.dumps(described))
    loaded = loaded_from(source)
    out = write(loaded, candidate_of(loaded, {}), tmp_path / "out", "stock")
    assert_same_ids(source, out)


def assert_same_ids(source: Path, out: Path) -> None:
    """The same text has the same ids, by transformers and by the file alone."""
    ours, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (out, source))
    raw = [Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in (out, source)]
    for text in TEXTS:
        assert ours(text)["input_ids"] == theirs(text)["input_ids"]
        assert raw[0].encode(text).ids == raw[1].encode(text).ids


def test_a_tokenizer_without_files_is_written_for_transformers_4(tmp_path: Path) -> None:
    tokenizer = trained_tokenizer("qwen2")
    tokenizer.add_special_tokens({"extra_special_tokens": [AddedToken("<|tool|>", special=True)]})
    loaded = replace(windowless("llama", layers=1, vocabulary=640), tokenizer=tokenizer)
    out = write(loaded, candidate_of(loaded, {}), tmp_path / "out", "stock")
    settings = json.loads((out / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "extra_special_tokens" not in settings
    assert settings["additional_special_tokens"] == ["<|tool|>"]
    read = AutoTokenizer.from_pretrained(out)
    assert isinstance(read, PreTrainedTokenizerFast)
    for text in (*TEXTS, "a <|tool|> call"):
        assert read(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert "<|tool|>" in read.all_special_tokens


def with_code(folder: Path) -> Path:
    """The dense folder with code of its own for everything, as older models have."""
    for name, code in {
        "config.json": {"AutoConfig": "configuration_x.XConfig", "AutoModel": "modeling_x.X"},
        "tokenizer_config.json": {"AutoTokenizer": ["tokenization_x.XTokenizer", None]},
    }.items():
        settings = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(settings | {"auto_map": code}))
    (folder / "tokenization_x.py").write_text("from .helper_x import Y\n\nclass XTokenizer: ...\n")
    (folder / "helper_x.py").write_text("Y = 1\n")
    (folder / "modeling_x.py").write_text("class X: ...\n")
    return folder


@pytest.mark.parametrize("form", ["stock", "padded", "hf", "folded", "deci"])
def test_only_code_that_is_there_is_named(form: str, tmp_path: Path) -> None:
    loaded = loaded_from(with_code(dense_folder(tmp_path / "dense")))
    out = write(loaded, candidate_of(loaded, {}), tmp_path / "out", form)
    for name in ("config.json", "tokenizer_config.json"):
        named = json.loads((out / name).read_text()).get("auto_map", {})
        for value in named.values():
            module = (value if isinstance(value, str) else value[0]).split(".")[0]
            assert (out / f"{module}.py").is_file()
        assert name != "config.json" or bool(named) == (form in ("hf", "folded", "deci"))
    assert (out / "helper_x.py").read_text() == "Y = 1\n"
    # Without the entries a load that trusts code takes transformers' class.
    if form == "stock":
        model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
        assert type(model) is type(loaded.model)


@pytest.mark.parametrize("name", [*SOURCE, "NOTICES", "README.md", "Copying.LESSER"])
def test_the_files_that_are_copied_are_had_from_the_hub(name: str) -> None:
    assert list(filter_repo_objects([name], allow_patterns=HUB_FILES)) == [name]


@pytest.mark.parametrize("name", ["license.py", "licenses.json", "tokenizer.txt", "notice.bin"])
def test_other_files_are_no_terms(name: str) -> None:
    assert not is_terms(name)


@pytest.mark.parametrize("form", ["stock", "padded", "hf"])
def test_code_of_a_model_in_a_repository_of_the_hub_is_not_named(form: str, tmp_path: Path) -> None:
    source = dense_folder(tmp_path / "dense")
    for name, auto in {
        "config.json": "AutoModel",
        "tokenizer_config.json": "AutoTokenizer",
    }.items():
        settings = json.loads((source / name).read_text())
        settings["auto_map"] = {auto: "organization/name--code_x.X"}
        (source / name).write_text(json.dumps(settings))
    loaded = loaded_from(source)
    out = write(loaded, candidate_of(loaded, {}), tmp_path / "out", form)
    named = [json.loads((out / name).read_text()).get("auto_map") for name in CODED[:2]]
    assert "organization" not in str(named[0])
    assert named[1] == {"AutoTokenizer": "organization/name--code_x.X"}


@pytest.mark.parametrize("gone", ["tokenization_x.py", "helper_x.py"])
def test_code_of_a_tokenizer_that_is_gone_is_not_named(gone: str, tmp_path: Path) -> None:
    source = with_code(dense_folder(tmp_path / "dense"))
    loaded = loaded_from(source)
    (source / gone).unlink()
    out = write(loaded, candidate_of(loaded, {}), tmp_path / "out", "stock")
    assert "auto_map" not in json.loads((out / "tokenizer_config.json").read_text())


@pytest.mark.parametrize("form", ["hf", "folded", "deci"])
def test_what_is_saved_again_has_its_code(form: str, tmp_path: Path) -> None:
    loaded = tiny_loaded("llama", layers=4)
    levels = {k: v for k, v in uneven(loaded).items() if not v.bias}
    out = write(loaded, candidate_of(loaded, levels), tmp_path / "out", form)
    again = tmp_path / "again"
    AutoModelForCausalLM.from_pretrained(out).save_pretrained(again)
    for file in out.glob("*.py"):
        assert (again / file.name).read_bytes() == file.read_bytes()
    maps = [json.loads((folder / "config.json").read_text())["auto_map"] for folder in (out, again)]
    assert maps[0] == maps[1]
    AutoModelForCausalLM.from_pretrained(again, trust_remote_code=True)
