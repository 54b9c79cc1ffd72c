"""Run files of a tiny model, for the tests of whole commands."""

import yaml

TEXT = " ".join(f"word{number * number % 97}" for number in range(3000))

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


def small_run(home, **changes):
    """A run of some seconds on the model and the text of a folder."""
    return {
        "name": "trial",
        "runs": str(home / "runs"),
        "model": {"source": str(home / "model")},
        "threads": 1,
        "calibration": {"source": str(home / "text.txt")} | SIZES,
        "space": {"sparsity": {"target": 0.5, "step": 128, "levels": 3}},
        "search": EVOPRESS,
        "heal": {"steps": 2, "evaluate_every": 2, "validation_sequences": 2},
        "evaluate": {"latency": False},
    } | changes


def write_run(home, **changes):
    """Writes that run, and the text if there is none yet; the run file's path is returned."""
    text = home / "text.txt"
    if not text.exists():
        text.write_text(TEXT)
    path = home / "trial.yaml"
    path.write_text(yaml.safe_dump(small_run(home, **changes)))
    return path
