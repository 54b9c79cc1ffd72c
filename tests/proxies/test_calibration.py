import json
import sys
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
import torch
from safetensors.torch import save_file
from tokenizers.processors import TemplateProcessing

from evocompress.config import CalibrationConfig
from evocompress.errors import DataError
from evocompress.models import LoadedModel
from evocompress.proxies.calibration import Calibration, load_calibration
from evocompress.testing.tiny import END_OF_TEXT, tiny_loaded, tiny_tokenizer

TEXT = "".join(f"Line {number} of a text, and no two lines are the same.\n" for number in range(90))


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_loaded()


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def config(source: Path | str, **changes: object) -> CalibrationConfig:
    sizes = {"library_sequences": 3, "search_sequences": 5, "heldout_sequences": 2, "length": 32}
    return CalibrationConfig.model_validate({"source": str(source), **sizes, **changes})


def in_order(calibration: Calibration) -> torch.Tensor:
    return torch.cat([calibration.library, *calibration.search, calibration.heldout])


def test_text_is_cut_into_disjoint_parts_in_order(loaded: LoadedModel, text: Path) -> None:
    calibration = load_calibration(config(text), loaded)
    assert [len(ids) for ids in calibration.search] == [2, 2, 1]
    assert calibration.pool.tokens == (64, 64, 32)
    expected = loaded.tokenizer(TEXT, add_special_tokens=False)["input_ids"][: 10 * 32]
    assert in_order(calibration).flatten().tolist() == expected
    assert in_order(calibration).dtype == torch.int64
    assert not calibration.self_written


@pytest.mark.parametrize("kind", ["text", "tokens", "data set"])
def test_every_sequence_begins_as_the_tokenizer_begins_a_text(
    loaded: LoadedModel, text: Path, tmp_path: Path, kind: str
) -> None:
    opens = replace(loaded, tokenizer=tiny_tokenizer(opens=True))
    assert loaded.tokenizer is not None
    ids = torch.tensor(loaded.tokenizer(TEXT)["input_ids"])
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text(json.dumps({"text": TEXT}))
    # A stream that has its beginning already is not given a second one.
    save_file({"tokens": torch.cat([ids.new_tensor([0]), ids])}, tmp_path / "t.safetensors")
    sources = {"text": text, "tokens": tmp_path, "data set": f"datasets:{tmp_path / 'set'}"}
    source = sources[kind]
    calibration = load_calibration(config(source), opens)
    sequences = in_order(calibration)
    assert sequences.shape == (10, 32) and calibration.pool.tokens == (64, 64, 32)
    assert (sequences[:, 0] == 0).all()
    assert torch.equal(sequences[:, 1:].flatten(), ids[: 10 * 31])
    assert calibration.opening == END_OF_TEXT
    without = load_calibration(config(source, bos=False), opens)
    if kind != "tokens":
        assert without.fingerprint == load_calibration(config(source), loaded).fingerprint
    assert without.opening == "" and without.fingerprint != calibration.fingerprint
    asked = load_calibration(config(source, bos=True), loaded)
    assert asked.fingerprint == calibration.fingerprint


def test_a_beginning_that_cannot_be_had_is_one_line(loaded: LoadedModel, text: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = None
    with pytest.raises(DataError, match=r"bos=true: .* has no beginning-of-text token"):
        load_calibration(config(text, bos=True), replace(loaded, tokenizer=tokenizer))
    beyond = tiny_tokenizer()
    beyond.add_special_tokens({"bos_token": "<begin>"})
    beyond.bos_token_id, beyond.backend_tokenizer.post_processor = (
        300,
        TemplateProcessing(single="<begin> $A", special_tokens=[("<begin>", 300)]),
    )
    with pytest.raises(DataError, match=r"ids from 300 to 300, but tiny:llama has only 256"):
        load_calibration(config(text), replace(loaded, tokenizer=beyond))
    with pytest.raises(DataError, match=r"bos=false: tiny:bert .* always have .* special tokens"):
        load_calibration(config(text, bos=False), tiny_loaded("bert"))


def test_the_held_out_part_may_come_from_elsewhere(
    loaded: LoadedModel, text: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.txt"
    other.write_text(TEXT[::-1])
    calibration = load_calibration(config(text, heldout_source=str(other)), loaded)
    assert loaded.tokenizer.decode(calibration.heldout[0]) == TEXT[::-1][:32]
    assert (calibration.source, calibration.heldout_source) == (str(text), str(other))


def test_naming_the_same_source_twice_keeps_the_parts_disjoint(
    loaded: LoadedModel, text: Path
) -> None:
    once = load_calibration(config(text), loaded)
    twice = load_calibration(config(text, heldout_source=str(text)), loaded)
    assert once.fingerprint == twice.fingerprint
    assert len(in_order(twice).unique(dim=0)) == 10


@pytest.mark.parametrize("key", ["tokens", "input_ids"])
def test_token_files_are_read_in_the_order_of_their_names(
    loaded: LoadedModel, tmp_path: Path, key: str
) -> None:
    rows = torch.arange(5 * 70).view(5, 70) % 200
    stream = torch.arange(200, dtype=torch.int32) % 150
    save_file({key: stream}, tmp_path / "b.safetensors")
    save_file({key: rows}, tmp_path / "a.safetensors")
    calibration = load_calibration(config(tmp_path, search_sequences=8), loaded)
    # Each row of 70 tokens holds two sequences; the stream the other three.
    expected = [*rows[:, :64].reshape(-1, 32), *stream[:96].view(-1, 32)]
    assert torch.equal(in_order(calibration), torch.stack(expected)[:13].long())


def test_a_data_set_on_disk_is_read(loaded: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "one document here"}\n' * 40)
    calibration = load_calibration(config(f"datasets:{tmp_path}"), loaded)
    first = loaded.tokenizer.decode(calibration.library[0])
    assert first == "one document here\n\none document here"[:32]


def test_fingerprint_covers_tokens_and_cuts(loaded: LoadedModel, text: Path) -> None:
    prints = {
        load_calibration(config(text, **changes), loaded).fingerprint
        for changes in ({}, {"micro_batch": 5}, {"length": 30}, {"library_sequences": 4})
    }
    assert len(prints) == 4
    assert load_calibration(config(text), loaded).fingerprint in prints


def bad_tokens(folder: Path, **tensors: torch.Tensor) -> str:
    save_file(tensors, folder / "x.safetensors")
    return str(folder)


def text_without_column(folder: Path) -> str:
    (folder / "train.jsonl").write_text('{"words": "a"}\n')
    return f"datasets:{folder}"


def damaged(folder: Path) -> str:
    (folder / "x.safetensors").write_bytes(b"not a safetensors file")
    return str(folder)


def binary(folder: Path) -> str:
    (folder / "x.txt").write_bytes(b"\xff\xfe\x00")
    return str(folder / "x.txt")


PROBLEMS = {
    "missing": (lambda folder: str(folder / "none.txt"), "none.txt does not exist"),
    "empty folder": (str, "holds no .safetensors"),
    "binary": (binary, "cannot be read"),
    "damaged": (damaged, "x.safetensors cannot be read"),
    "wrong key": (lambda f: bad_tokens(f, ids=torch.ones(9)), "no tensor named tokens or input"),
    "floats": (lambda f: bad_tokens(f, tokens=torch.ones(9)), "must hold integers"),
    "three axes": (lambda f: bad_tokens(f, tokens=torch.ones(9, 9, 9).int()), "must hold integers"),
    "vocabulary": (
        lambda f: bad_tokens(f, tokens=torch.full((999,), 256)),
        "from 256 to 256, but tiny:llama has only 256",
    ),
    "short rows": (
        lambda f: bad_tokens(f, tokens=torch.ones(99, 31).int()),
        r"only 0 sequences of 32 tokens, but 10 \(3 \+ 5 \+ 2\) are needed",
    ),
    "no column": (text_without_column, "none of the text columns text, .* it has words"),
    "no data set": (lambda f: f"datasets:{f}/none", "cannot be read"),
    "no split": (lambda f: text_without_column(f) + "::test", "Bad split: test"),
}


@pytest.mark.parametrize("problem", sorted(PROBLEMS))
def test_a_source_that_does_not_serve_is_named(
    loaded: LoadedModel, tmp_path: Path, problem: str
) -> None:
    make, message = PROBLEMS[problem]
    with pytest.raises(DataError, match=message) as caught:
        load_calibration(config(make(tmp_path)), loaded)
    assert "\n" not in str(caught.value)


def test_too_few_held_out_tokens_name_their_own_key(
    loaded: LoadedModel, text: Path, tmp_path: Path
) -> None:
    short = tmp_path / "short.txt"
    short.write_text(TEXT[:40])
    with pytest.raises(DataError, match=r"only 1 .* but 2 .* calibration.heldout_sequences"):
        load_calibration(config(text, heldout_source=str(short)), loaded)


def test_sequences_longer_than_the_context_are_refused(loaded: LoadedModel, text: Path) -> None:
    with pytest.raises(DataError, match="length is 513, but tiny:llama takes at most 512"):
        load_calibration(config(text, length=513), loaded)


def test_no_network_is_one_clear_line(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach 'wikitext' on the Hub\n(offline)")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match="no network.*Couldn't reach") as caught:
        load_calibration(config("datasets:wikitext"), loaded)
    assert "\n" not in str(caught.value)


def test_missing_package_says_what_to_install(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'evocompress\[data\]'"):
        load_calibration(config("datasets:wikitext"), loaded)
