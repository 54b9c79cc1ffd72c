import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from evocompress.core.config import CalibrationConfig
from evocompress.core.errors import DataError
from evocompress.evaluation.calibration import self_text
from evocompress.evaluation.calibration.calibration import load_calibration
from evocompress.evaluation.calibration.self_text import Writing, self_written, write
from evocompress.models.loading import LoadedModel
from evocompress.testing.tiny import END_OF_TEXT_ID, tiny_loaded, tiny_tokenizer

WRITING = Writing(sequences=5, length=12, seed=3, batch=2)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2", "opt"])
def test_text_is_full_length_and_repeatable(model_type: str) -> None:
    loaded = tiny_loaded(model_type)
    tokens = write(loaded, WRITING)
    assert tokens.shape == (5, 12) and tokens.dtype == torch.int64
    assert torch.equal(tokens, write(loaded, WRITING))
    assert not torch.equal(tokens, write(loaded, replace(WRITING, seed=4)))
    assert len(tokens[:, 0].unique()) > 1


def test_special_and_unknown_tokens_are_never_drawn() -> None:
    loaded = tiny_loaded("llama")
    tokens = write(loaded, Writing(sequences=60, length=60, seed=0, top_k=256))
    assert loaded.tokenizer.eos_token_id not in tokens
    assert int(tokens.max()) < len(loaded.tokenizer) < 256
    assert len(tokens.unique()) > 200


def test_tokens_follow_the_model_with_its_cache() -> None:
    loaded = tiny_loaded("gemma2")
    tokens = write(loaded, Writing(sequences=3, length=40, seed=0, top_k=1))
    logits = loaded.model(tokens, use_cache=False).logits
    logits[..., len(loaded.tokenizer) :] = -torch.inf
    logits[..., loaded.tokenizer.all_special_ids] = -torch.inf
    assert torch.equal(logits.argmax(-1)[:, :-1], tokens[:, 1:])


def test_text_begins_as_the_tokenizer_begins_one() -> None:
    loaded = replace(tiny_loaded("llama"), tokenizer=tiny_tokenizer(opens=True))
    assert (write(loaded, WRITING)[:, 0] == END_OF_TEXT_ID).all()


def test_texts_of_another_beginning_have_names_of_their_own(tmp_path: Path) -> None:
    plain = tiny_loaded("llama")
    opens = replace(plain, tokenizer=tiny_tokenizer(opens=True))
    sizes = {"library_sequences": 2, "search_sequences": 2, "heldout_sequences": 2, "length": 16}

    def first(loaded: LoadedModel, bos: object) -> tuple[torch.Tensor, list[str]]:
        folder = tmp_path / f"{loaded is plain}-{bos}"
        config = CalibrationConfig.model_validate({"source": "self", "bos": bos, **sizes})
        calibration = load_calibration(config, loaded, cache=folder)
        return calibration.library[:, 0], [file.name for file in folder.iterdir()]

    facts = [plain.fingerprint, asdict(Writing(sequences=6, length=16, seed=0))]
    text = json.dumps(facts, sort_keys=True)
    before = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    for loaded, usual, other in ((plain, False, True), (opens, True, False)):
        found = {bos: first(loaded, bos) for bos in ("auto", True, False)}
        assert (found[True][0] == END_OF_TEXT_ID).all()
        assert (found[False][0] != END_OF_TEXT_ID).all()
        # The name that texts had before there was a choice stays that of the usual beginning.
        assert found["auto"][1] == found[usual][1] == [f"{before}.safetensors"]
        assert found[other][1] != found[usual][1]


def test_the_cache_answers_the_second_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_loaded("llama")
    monkeypatch.setenv("EVOCOMPRESS_CACHE", str(tmp_path))
    tokens = self_written(loaded, WRITING)
    monkeypatch.setattr(self_text, "write", None)
    assert torch.equal(self_written(loaded, WRITING), tokens)


def test_a_damaged_text_is_written_anew_with_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loaded, shape = tiny_loaded("llama"), (WRITING.sequences, WRITING.length)
    tokens = self_written(loaded, WRITING, tmp_path).clone()  # not the mapped file
    [file] = tmp_path.iterdir()
    whole = file.read_bytes()
    flipped = whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:]
    beyond = save({"tokens": torch.full(shape, 10**6, dtype=torch.int32)})
    fewer = save({"tokens": torch.ones(2, 3, dtype=torch.int32)})
    for content in (b"damaged", b"", flipped, whole[:-1], save({}), beyond, fewer):
        file.write_bytes(content)
        caplog.clear()
        assert torch.equal(self_written(loaded, WRITING, tmp_path), tokens)
        assert f"{file} is damaged" in caplog.text and "written anew" in caplog.text
        assert file.read_bytes() == whole
        assert list(tmp_path.iterdir()) == [file]
    file.write_bytes(save({"tokens": tokens.int()}))  # as older versions wrote it
    monkeypatch.setattr(self_text, "write", None)
    assert torch.equal(self_written(loaded, WRITING, tmp_path), tokens)


def test_tokens_that_the_model_lacks_are_not_drawn() -> None:
    loaded = tiny_loaded("llama")
    assert loaded.tokenizer is not None
    loaded.tokenizer.add_tokens([f"<more{number}>" for number in range(40)])
    loaded.tokenizer.add_special_tokens({"eos_token": "<end>", "pad_token": "<pad>"})
    assert loaded.tokenizer.pad_token_id > 256
    tokens = write(loaded, Writing(sequences=30, length=30, seed=0, top_k=256))
    assert int(tokens.min()) >= 0 and int(tokens.max()) < 256


def test_a_tokenizer_without_special_tokens_writes_as_well() -> None:
    loaded = tiny_loaded("llama")
    assert loaded.tokenizer is not None
    loaded.tokenizer.bos_token = loaded.tokenizer.eos_token = None
    assert loaded.tokenizer.all_special_ids == []
    assert write(loaded, WRITING).shape == (5, 12)


def test_a_model_that_cannot_write_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tiny_loaded("llama")
    broken.model.get_input_embeddings().weight.fill_(torch.nan)
    with pytest.raises(DataError, match="its outputs are not finite numbers"):
        write(broken, WRITING)
    loaded = tiny_loaded("llama")
    tokens = list(range(300))
    monkeypatch.setattr(type(loaded.tokenizer), "all_special_ids", tokens, raising=False)
    with pytest.raises(DataError, match="256 tokens, and its tokenizer none that is not special"):
        write(loaded, WRITING)


def test_calibration_from_the_model_itself(tmp_path: Path) -> None:
    config = CalibrationConfig(
        source="self", library_sequences=3, search_sequences=3, heldout_sequences=2, length=16
    )
    loaded = tiny_loaded("llama")
    calibration = load_calibration(config, loaded, cache=tmp_path)
    assert calibration.self_written
    together = torch.cat([calibration.library, *calibration.search, calibration.heldout])
    assert torch.equal(together, write(loaded, Writing(sequences=8, length=16, seed=0)))
    assert len(together.unique(dim=0)) == 8
