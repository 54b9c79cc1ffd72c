"""Run files of a tiny model, for the tests of whole commands."""

import yaml

from evocompress.core.files import read_json
from evocompress.core.types import Level

TEXT = " ".join(f"word{number * number % 2999}" for number in range(3000))

SIZES = {
    "library_sequences": 6,
    "search_sequences": 8,
    "heldout_sequences": 4,
    "length": 32,
    "micro_batch": 2,
}

EVOPRESS = {
    "name": "evopress",
    "generations": 3,
    "offspring": 4,
    "survivors": [2, 1],
    "stage_tokens": [64, 128],
}


def tiny_run(home, sizes=None, **changes):
    """What all runs on the model and the text of a folder have; the text is written if it lacks.

    `sizes` are the settings of the calibration that differ from `SIZES`.
    """
    text = home / "text.txt"
    if not text.exists():
        text.write_text(TEXT)
    return {
        "name": "run",
        "runs": str(home / "runs"),
        "model": {"source": str(home / "model")},
        "threads": 1,
        "calibration": {"source": str(text)} | SIZES | (sizes or {}),
    } | changes


def small_run(home, **changes):
    """A run of some seconds on the model and the text of a folder."""
    return (
        tiny_run(
            home,
            name="trial",
            space={"sparsity": {"target": 0.5, "step": 128, "levels": 3}},
            search=EVOPRESS,
            heal={"steps": 2, "evaluate_every": 2, "validation_sequences": 2},
            evaluate={"latency": False},
        )
        | changes
    )


def written(path, run):
    """The path of a run file with these settings."""
    path.write_text(yaml.safe_dump(run))
    return path


def write_run(home, **changes):
    """The path of the run file of `small_run`."""
    return written(home / "trial.yaml", small_run(home, **changes))


def winner_of(folder):
    """{unit: level} of a run's winner."""
    named = read_json(folder / "winner.json")["levels"]
    return {name: Level.from_json(level) for name, level in named.items()}


def assert_same_search(folder, other, *, order=True):
    """Two runs have the same winner and journal, in whose lines answers may come in any `order`."""
    assert (folder / "winner.json").read_bytes() == (other / "winner.json").read_bytes()
    lines = [(each / "journal.jsonl").read_text().splitlines() for each in (folder, other)]
    assert lines[0] == lines[1] if order else sorted(lines[0]) == sorted(lines[1])
