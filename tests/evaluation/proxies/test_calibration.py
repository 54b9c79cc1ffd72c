import json
import sys
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers.processors import TemplateProcessing

from evocompress.core.config import CalibrationConfig
from evocompress.core.errors import DataError
from evocompress.evaluation.calibration import parts
from evocompress.evaluation.calibration.calibration import Calibration, load_calibration
from evocompress.models.loading import LoadedModel
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
    stream = 149 - torch.arange(200, dtype=torch.int32) % 150
    save_file({key: stream}, tmp_path / "b.safetensors")
    save_file({key: rows}, tmp_path / "a.safetensors")
    calibration = load_calibration(config(tmp_path, search_sequences=8), loaded)
    # Each row of 70 tokens holds two sequences; the stream the other three.
    expected = [*rows[:, :64].reshape(-1, 32), *stream[:96].view(-1, 32)]
    assert torch.equal(in_order(calibration), torch.stack(expected)[:13].long())


def test_a_data_set_on_disk_is_read(loaded: LoadedModel, tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"document {number} here"}) for number in range(40)]
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    calibration = load_calibration(config(f"datasets:{tmp_path}"), loaded)
    first = loaded.tokenizer.decode(calibration.library[0])
    assert first == "document 0 here\n\ndocument 1 here"[:32]


def same_source(text: Path, folder: Path, way: str) -> str:
    """Another name for what is in a text file, or in the token folder or data set made of it."""
    if way == "absolute":
        return str(text.absolute())
    if way == "dots":
        return f"{text.parent}/../{text.parent.name}/./{text.name}"
    other = folder / f"{way}.txt"
    if way == "link":
        other.symlink_to(text)
    elif way == "hard link":
        other.hardlink_to(text)
    elif way == "copy":
        other.write_text(TEXT)
    elif way == "windows":
        other.write_bytes(TEXT.replace("\n", "\r\n").encode())
    return str(other)


@pytest.mark.parametrize("way", ["absolute", "dots", "link", "hard link", "copy", "windows"])
def test_the_same_text_under_another_name_is_cut_apart(
    loaded: LoadedModel, text: Path, tmp_path: Path, way: str
) -> None:
    once = load_calibration(config(text), loaded)
    twice = load_calibration(config(text, heldout_source=same_source(text, tmp_path, way)), loaded)
    assert once.fingerprint == twice.fingerprint
    assert twice.left_out == 8 * 32


def test_a_data_set_named_with_its_split_is_the_same_one(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": TEXT}))
    name = f"datasets:{tmp_path}"
    once = load_calibration(config(name), loaded)
    twice = load_calibration(config(name, heldout_source=f"{name}::train"), loaded)
    assert once.fingerprint == twice.fingerprint


def test_tokens_of_the_same_text_are_cut_apart(loaded: LoadedModel, tmp_path: Path) -> None:
    ids = torch.from_numpy(np.random.default_rng(0).integers(200, size=3000))
    (tmp_path / "text").mkdir()
    save_file({"tokens": ids}, tmp_path / "text" / "x.safetensors")
    for name, rows in {"a": ids, "b": ids[: 30 * 32].view(-1, 32)}.items():
        (tmp_path / name).mkdir()
        save_file({"tokens": rows}, tmp_path / name / "x.safetensors")
    once = load_calibration(config(tmp_path / "text"), loaded)
    for source, other in (("a", "b"), ("b", "a")):
        pair = config(tmp_path / source, heldout_source=str(tmp_path / other))
        assert load_calibration(pair, loaded).fingerprint == once.fingerprint
    shuffled = ids[: 30 * 32].view(-1, 32)[torch.randperm(30)].contiguous()
    save_file({"tokens": shuffled}, tmp_path / "b" / "x.safetensors")
    both = in_order(
        load_calibration(config(tmp_path / "text", heldout_source=str(tmp_path / "b")), loaded)
    )
    assert len(both.unique(dim=0)) == 10


@pytest.mark.parametrize("length", [16, 32, 100])
@pytest.mark.parametrize("before", ["", "A line of its own that comes before all others.\n" * 3])
def test_a_file_that_contains_the_other_has_only_its_own_text_held_out(
    loaded: LoadedModel, text: Path, tmp_path: Path, before: str, length: int
) -> None:
    other = tmp_path / "other.txt"
    own = "".join(f"What only the other file says, the {n}th time.\n" for n in range(50))
    other.write_text(before + TEXT + own)
    sizes = {"library_sequences": 3, "search_sequences": len(TEXT) // length - 3}
    pair = config(text, heldout_source=str(other), heldout_sequences=5, length=length, **sizes)
    calibration = load_calibration(pair, loaded)
    heldout = [loaded.tokenizer.decode(row) for row in calibration.heldout]
    assert not any(part in TEXT for part in heldout)
    assert all(part in other.read_text() for part in heldout)
    assert calibration.left_out >= len(TEXT) // length * length


def test_sources_with_nothing_of_their_own_are_one_line(
    loaded: LoadedModel, text: Path, tmp_path: Path
) -> None:
    part = tmp_path / "part.txt"
    part.write_text(TEXT[:256])
    message = r"part\.txt has 8 .* only 0 .* in common with what the search sees of .*text\.txt"
    with pytest.raises(DataError, match=message) as caught:
        load_calibration(config(text, heldout_source=str(part)), loaded)
    assert "\n" not in str(caught.value)
    repeated = tmp_path / "repeated.txt"
    repeated.write_text(TEXT[:256] * 9)
    with pytest.raises(DataError, match=r"repeated\.txt has 72 .* only 0 .* in common"):
        load_calibration(config(repeated), loaded)


def test_a_text_that_repeats_itself_says_so_and_shares_no_sequence(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    path = tmp_path / "text.txt"
    path.write_text(TEXT[:250] * 9)
    calibration = load_calibration(config(path), loaded)
    assert len(in_order(calibration).unique(dim=0)) == 10
    assert calibration.repeated == calibration.heldout.numel()
    other = tmp_path / "other.txt"
    other.write_text(TEXT[:250] * 5 + TEXT[::-1])
    calibration = load_calibration(config(path, heldout_source=str(other)), loaded)
    assert calibration.repeated == 0
    heldout = [loaded.tokenizer.decode(row) for row in calibration.heldout]
    assert all(part in TEXT[::-1] for part in heldout)


def test_parts_that_the_model_writes_alike_are_refused(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = torch.arange(10 * 32).view(10, 32) % 200
    monkeypatch.setattr(parts, "self_written", lambda *_, **__: text)
    assert torch.equal(in_order(load_calibration(config("self"), loaded)), text)
    text[9] = text[1]
    with pytest.raises(DataError, match="wrote 1 of the 2 held-out sequences like ones"):
        load_calibration(config("self"), loaded)


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
    "negative": (
        lambda f: bad_tokens(f, tokens=torch.full((999,), -1)),
        "from -1 to -1, but tiny:llama has only 256",
    ),
    "too large": (
        lambda f: bad_tokens(f, tokens=torch.full((999,), 2**64 - 1, dtype=torch.uint64)),
        "from -1 to -1, but tiny:llama has only 256",
    ),
    "booleans": (lambda f: bad_tokens(f, tokens=torch.ones(999).bool()), "must hold integers"),
    "complex": (
        lambda f: bad_tokens(f, tokens=torch.ones(999, dtype=torch.complex64)),
        "must hold integers",
    ),
    "no axis": (lambda f: bad_tokens(f, tokens=torch.tensor(3)), "must hold integers"),
    "empty": (
        lambda f: bad_tokens(f, tokens=torch.zeros(0).int()),
        "only 0 sequences of 32 tokens",
    ),
    "empty rows": (
        lambda f: bad_tokens(f, tokens=torch.zeros(3, 0).int()),
        "only 0 sequences of 32 tokens",
    ),
    "short rows": (
        lambda f: bad_tokens(f, tokens=torch.ones(99, 31).int()),
        r"only 0 .* but 10 \(3 \+ 5 \+ 2\) are needed: .* search_sequences or heldout_sequences",
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
    short.write_text(TEXT[::-1][:40])
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
