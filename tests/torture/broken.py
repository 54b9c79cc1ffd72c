"""Models and texts that are broken in every way of which people have reported one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from numpy.random import Generator

from tests.torture.command import Done, run
from tests.torture.damage import flipped, replaced, reshaped, truncated
from tests.torture.scene import TEXT, Scene, differences, settings
from tests.torture.verdict import Verdict

Breaker = Callable[[Path, Generator], str]
"""Breaks a model in a folder and says how."""

OTHER_HEADS = ("TokenClassification", "QuestionAnswering")

HUGE = (10**9, 10**6, -1, 0, 1.5, "many", None, [], 10**30, True)


def models(scene: Scene, rng: Generator) -> Iterator[Verdict]:
    """Searches with broken models."""
    while True:
        name = str(rng.choice(list(BREAKERS)))
        scene.lay("start")
        before = scene.files()
        must_refuse, breaker = BREAKERS[name]
        how = breaker(scene.root / "model", rng)
        changed = scene.files()
        done = _searched(scene, {})
        left = [] if done.code == 0 else differences(scene.files(), changed)
        wrong = f"{name}: taken as if it were whole" if must_refuse and done.code == 0 else ""
        left = [one for one in left if not one.startswith("cache/")]
        wrong = wrong or (f"refused, yet left {left[:5]}" if left else "")
        assert before is not None
        unclean = "" if done.clean else str(done)
        yield Verdict("model broken", "", wrong, unclean, f"{scene.name}: {name}: {how}")


def texts(scene: Scene, rng: Generator) -> Iterator[Verdict]:
    """Searches with calibration texts that are none."""
    while True:
        name = str(rng.choice(list(TEXTS)))
        scene.lay("start")
        path = scene.root / TEXTS[name][1]
        TEXTS[name][2](path, rng)
        before = scene.files() if not path.is_fifo() else None
        done = _searched(scene, {"source": path.name})
        wrong = "" if done.code or not TEXTS[name][0] else f"{name}: taken as text"
        if before is not None and done.code != 0:
            left = [n for n in differences(scene.files(), before) if not n.startswith("cache/")]
            wrong = wrong or (f"refused, yet left {left[:5]}" if left else "")
        unclean = "" if done.clean else str(done)
        yield Verdict("text broken", "", wrong, unclean, f"{scene.name}: {name}")


def _searched(scene: Scene, calibration: dict[str, Any]) -> Done:
    """A search in the scene with another text."""
    data = settings(scene.name)
    data["calibration"] |= calibration
    (scene.root / "trial.yaml").write_text(yaml.safe_dump(data))
    return run(("search", "trial.yaml"), scene.root, seconds=60)


# ---- models


def _file(way: Callable[[bytes, Generator], bytes], *names: str) -> Breaker:
    def break_it(model: Path, rng: Generator) -> str:
        path = model / str(rng.choice(names))
        path.write_bytes(way(path.read_bytes(), rng))
        return f"{path.name} {way.__name__}"

    return break_it


def _without(*names: str) -> Breaker:
    def break_it(model: Path, rng: Generator) -> str:
        name = str(rng.choice(names))
        (model / name).unlink()
        return f"without {name}"

    return break_it


def _config(change: Callable[[dict[str, Any], Generator], str]) -> Breaker:
    def break_it(model: Path, rng: Generator) -> str:
        path = model / "config.json"
        config = json.loads(path.read_text())
        how = change(config, rng)
        path.write_text(json.dumps(config))
        return how

    return break_it


def _tensors(change: Callable[[dict[str, Any], Generator], str]) -> Breaker:
    """Changes the stored tensors, in a process of its own that may start threads."""

    def break_it(model: Path, rng: Generator) -> str:
        told = model.parent / "told"
        pid = os.fork()
        if pid == 0:
            from safetensors.torch import load_file, save_file

            tensors = load_file(model / "model.safetensors")
            told.write_text(change(tensors, rng))
            save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
            os._exit(0)
        os.waitpid(pid, 0)
        rng.random()  # The child's draws are its own: the next ones here differ from them.
        how = told.read_text()
        told.unlink()
        return how

    return break_it


def _any_key(config: dict[str, Any], rng: Generator) -> str:
    key = str(rng.choice([k for k in config if k != "transformers_version"]))
    config[key] = HUGE[int(rng.integers(len(HUGE)))]
    return f"{key} is {config[key]!r}"


def _set(key: str, *values: Any) -> Callable[[dict[str, Any], Generator], str]:
    def change(config: dict[str, Any], rng: Generator) -> str:
        config[key] = values[int(rng.integers(len(values)))]
        return f"{key} is {config[key]!r}"

    return change


def _one(tensors: dict[str, Any], rng: Generator) -> str:
    return str(rng.choice(sorted(tensors)))


def _drop_tensor(tensors: dict[str, Any], rng: Generator) -> str:
    name = _one(tensors, rng)
    del tensors[name]
    return f"without {name}"


def _more_tensor(tensors: dict[str, Any], rng: Generator) -> str:
    name = _one(tensors, rng)
    more = name.replace(".weight", str(rng.choice([".lora_A.weight", ".bias", "_norm.weight"])))
    tensors[more] = tensors[name].clone()
    return f"with {more}"


def _more_layers(tensors: dict[str, Any], rng: Generator) -> str:
    for name in [n for n in tensors if ".layers.0." in n]:
        tensors[name.replace(".layers.0.", ".layers.7.")] = tensors[name].clone()
    return "with a layer 7"


def _other_shape(tensors: dict[str, Any], rng: Generator) -> str:
    name = _one(tensors, rng)
    tensors[name] = tensors[name][:-1].clone()
    return f"{name} one row short"


def _integers(tensors: dict[str, Any], rng: Generator) -> str:
    import torch

    name = _one(tensors, rng)
    kind = (torch.int8, torch.int32, torch.uint8, torch.bool)[int(rng.integers(4))]
    tensors[name] = tensors[name].to(kind)
    return f"{name} as {kind}"


def _not_finite(tensors: dict[str, Any], rng: Generator) -> str:
    name = _one(tensors, rng)
    tensors[name].view(-1)[0] = float("nan")
    return f"a NaN in {name}"


def _buffers(tensors: dict[str, Any], rng: Generator) -> str:
    import torch

    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    return "with an old inv_freq"


def _folder_instead(model: Path, rng: Generator) -> str:
    shutil.rmtree(model)
    model.write_text("no folder")
    return "a file in the place of the folder"


WHOLE = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
TEXT_FILES = tuple(name for name in WHOLE if name.endswith(".json"))

BREAKERS: dict[str, tuple[bool, Breaker]] = {
    "file truncated": (False, _file(truncated, *WHOLE)),
    "file flipped": (
        False,
        _file(flipped, "config.json", "tokenizer.json", "tokenizer_config.json"),
    ),
    "file replaced": (False, _file(replaced, *WHOLE)),
    "JSON reshaped": (False, _file(reshaped, "config.json", "tokenizer.json")),
    "file missing": (False, _without(*WHOLE)),
    "key of the config": (False, _config(_any_key)),
    "too many layers": (True, _config(_set("num_hidden_layers", 10**6, 10**9, 4, "3"))),
    "absurd sizes": (True, _config(_set("vocab_size", 10**9, 10**12, -5))),
    "absurd labels": (True, _config(_set("num_labels", 10**9, 10**7))),
    "other class": (
        True,
        _config(
            _set("architectures", ["LlamaForTokenClassification"], ["LlamaForQuestionAnswering"])
        ),
    ),
    "other type": (True, _config(_set("model_type", "mamba", "llava", "no_such", 7, None))),
    "quantized": (True, _config(_set("quantization_config", {"quant_method": "gptq", "bits": 4}))),
    "not quantized": (False, _config(_set("quantization_config", None))),
    "tensor missing": (True, _tensors(_drop_tensor)),
    "tensor too many": (True, _tensors(_more_tensor)),
    "layers too many": (True, _tensors(_more_layers)),
    "tensor of another shape": (True, _tensors(_other_shape)),
    "tensor of integers": (True, _tensors(_integers)),
    "tensor not finite": (False, _tensors(_not_finite)),
    "old buffer": (False, _tensors(_buffers)),
    "no folder": (True, _folder_instead),
}
"""Each with whether it must be refused; the others may be refused or searched rightly."""


# ---- texts


def _writes(content: bytes | str) -> Callable[[Path, Generator], None]:
    data = content.encode() if isinstance(content, str) else content
    return lambda path, rng: path.write_bytes(data) and None


def _random_bytes(path: Path, rng: Generator) -> None:
    path.write_bytes(rng.bytes(20000))


def _latin(path: Path, rng: Generator) -> None:
    path.write_bytes(TEXT.replace("word", "wört").encode("latin-1"))


TEXTS: dict[str, tuple[bool, str, Callable[[Path, Generator], None]]] = {
    "empty": (True, "t.txt", _writes("")),
    "blank": (True, "t.txt", _writes(" \n" * 10)),
    "too short": (True, "t.txt", _writes("a few words")),
    "bytes": (True, "t.txt", _random_bytes),
    "latin-1": (True, "t.txt", _latin),
    "zeros": (False, "t.txt", _writes("\0" * 20000)),
    "byte order mark": (False, "t.txt", _writes("\ufeff" + TEXT)),
    "one word again and again": (False, "t.txt", _writes("word " * 20000)),
    "controls": (False, "t.txt", _writes("\x1b[31m\x07" + TEXT)),
    "a folder": (True, "t.txt", lambda path, rng: path.mkdir()),
    "a loop": (True, "t.txt", lambda path, rng: path.symlink_to(path)),
    "missing": (True, "t.txt", lambda path, rng: None),
    "a pipe": (True, "t.txt", lambda path, rng: os.mkfifo(path)),
    "broken jsonl": (True, "t.jsonl", _writes('{"text": "a"}\n{"text": \n')),
    "jsonl of other fields": (True, "t.jsonl", _writes('{"body": "a"}\n' * 500)),
    "jsonl of numbers": (True, "t.jsonl", _writes('{"text": 5}\n' * 500)),
    "jsonl of lists": (True, "t.jsonl", _writes("[1, 2]\n" * 500)),
    "deep json": (True, "t.json", _writes("[" * 50000)),
    "csv without the column": (True, "t.csv", _writes("a,b\n" + "1,2\n" * 500)),
    "csv of ragged rows": (True, "t.csv", _writes("text\n" + 'a,b,"c\n' * 500)),
    "no parquet": (True, "t.parquet", _writes("PAR1" + "x" * 500)),
    "no safetensors": (True, "t.safetensors", _writes("x" * 500)),
}
"""Each with whether it must be refused, the name of its file, and what writes it."""
