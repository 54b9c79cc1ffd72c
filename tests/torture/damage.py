"""Files of run, library and cache damaged at random; then a command that reads them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from numpy.random import Generator

from tests.torture.scene import CONSUMERS, LAST, Scene, differences
from tests.torture.verdict import Verdict, judged

SHAPES = (
    *("null", "{}", "[]", "0", '"text"', "[null]", '{"": null}', "[[[]]]", "true", "1e999", "NaN"),
    *("9" * 5000, "[" * 20000, '{"a":' * 20000, "-1", '{"step": "x"}', '{"rows": [{}]}'),
)
"""Valid and nearly valid JSON that no file of a run looks like."""


def truncated(data: bytes, rng: Generator) -> bytes:
    """The beginning of a file."""
    return data[: int(rng.integers(0, max(1, len(data))))]


def flipped(data: bytes, rng: Generator) -> bytes:
    """A file with one bit turned over, or a few."""
    changed = bytearray(data)
    for _ in range(int(rng.choice([1, 1, 1, 8]))):
        changed[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def replaced(_: bytes, rng: Generator) -> bytes:
    """JSON of another shape, or bytes that are no text."""
    if rng.uniform() < 0.15:
        return rng.bytes(int(rng.integers(1, 400)))
    return str(rng.choice(SHAPES)).encode()


def reshaped(data: bytes, rng: Generator) -> bytes:
    """The same JSON with one value, somewhere inside, of another type; of lines one of them."""
    lines = data.splitlines(keepends=True)
    try:
        if len(lines) > 1 and data.startswith(b"{") and lines[0].rstrip().endswith(b"}"):
            number = int(rng.integers(len(lines)))
            lines[number] = _reshaped_json(lines[number], rng) + b"\n"
            return b"".join(lines)
        return _reshaped_json(data, rng)
    except ValueError:
        return flipped(data, rng)


def _reshaped_json(text: bytes, rng: Generator) -> bytes:
    value = json.loads(text)
    places: list[tuple[object, object]] = []
    _collect(value, places)
    if not places:
        return b"null"
    owner, key = places[int(rng.integers(len(places)))]
    strange = json.loads(str(rng.choice(SHAPES[:10])).replace("1e999", "-7.5"))
    owner[key] = strange  # type: ignore[index]
    return json.dumps(value).encode()


def _collect(value: object, places: list[tuple[object, object]]) -> None:
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            places.append((value, key))
            _collect(inner, places)


KINDS: dict[str, Callable[[bytes, Generator], bytes]] = {
    "file truncated": truncated,
    "bits of a file flipped": flipped,
    "file replaced": replaced,
    "value in a file of another type": reshaped,
}


def damaged(scene: Scene, rng: Generator) -> Iterator[Verdict]:
    """Damages one file after the other and gives a command that may read it."""
    stage = LAST
    scene.lay(stage)
    names = sorted(_read_back(scene))
    while True:
        kind, consumer = str(rng.choice(list(KINDS))), str(rng.choice(list(CONSUMERS)))
        place = str(rng.choice(sorted({_kind_of_file(name) for name in names})))
        name = str(rng.choice([name for name in names if _kind_of_file(name) == place]))
        scene.lay(stage)
        path = scene.root / name
        original = path.read_bytes()
        changed = KINDS[kind](original, rng)
        if changed == original:
            continue
        path.write_bytes(changed)
        yield _verdict(scene, kind, consumer, path, original, changed)


def _verdict(
    scene: Scene, kind: str, consumer: str, path: Path, original: bytes, changed: bytes
) -> Verdict:
    name = str(path.relative_to(scene.root))
    detail = f"{scene.name}: {name} damaged ({_how(original, changed)}), then {consumer}"
    expected, files = scene.results[consumer]
    done = scene.run(consumer)
    wrong = _unlike(scene, files, name, original, changed)
    if done.code == 0:
        noisy = done.output.count("\n") != expected.output.count("\n")
        left = [] if noisy and wrong == [name] else wrong
        return judged(kind, done, None, left, detail)
    # A refusal changes nothing, and with the file as before the command does what it should.
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(original)
    again = scene.run(consumer)
    return judged(kind, done, again, differences(scene.files(), files), detail)


def _unlike(
    scene: Scene, files: dict[str, str], name: str, original: bytes, changed: bytes
) -> list[str]:
    """Files that a command left otherwise; the damaged one itself may stand as it is."""
    path = scene.root / name
    untouched = path.is_file() and path.read_bytes() == changed
    return [one for one in differences(scene.files(), files) if not (one == name and untouched)]


def _how(original: bytes, changed: bytes) -> str:
    if len(original) == len(changed):
        places = [i for i, (a, b) in enumerate(zip(original, changed, strict=True)) if a != b]
        return f"bytes {places[:8]}"
    if original.startswith(changed):
        return f"cut to {len(changed)} bytes"
    return f"now {changed[:60]!r}"


def _kind_of_file(name: str) -> str:
    """What is damaged equally often: a folder's files of one ending."""
    path = Path(name)
    special = path.name if path.suffix in (".json", ".jsonl", ".yaml") else path.suffix
    return f"{path.parent.name}/{special}"


def _read_back(scene: Scene) -> list[str]:
    """All files that the program wrote, and the model's; locks and pages are never read."""
    names = (
        str((Path(folder) / name).relative_to(scene.root))
        for folder, _, files in os.walk(scene.root)
        for name in files
    )
    never = (".lock", ".html", ".md", ".txt", "trial.yaml")
    # What a user may well change in the model: it is copied as it is, and decides no weight.
    owned = ("model/tokenizer.json", "model/tokenizer_config.json", "model/generation_config.json")
    read = [name for name in names if not name.endswith(never) and name not in owned]
    return [name for name in read if (scene.root / name).stat().st_size]
