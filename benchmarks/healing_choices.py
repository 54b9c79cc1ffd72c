"""What `healing.py` compares: winners of which spaces, and what is changed in their healing."""

from __future__ import annotations

from typing import Any

CALIBRATION = "calibration"
"""The sequences of library and search, again and again."""

FORMER = "former default"
"""The same with four sequences a step and a rate of 3e-4."""

MIXED = "books+wikitext"
"""Fresh text of both sources."""

SETTINGS: dict[str, dict[str, Any]] = {
    "widths": {
        "width": {
            "channels": [0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125],
            "multiple_of": 64,
        },
        "drop": {"units": ["attention", "mlp"]},
        "budget": {"body_params": 0.7},
    },
    "zeros": {"sparsity": {"target": 0.6, "step": 27648, "levels": 4}},
}
"""Spaces by name."""

TYPED: dict[str, dict[str, Any]] = {
    "bits": {
        "bits": {"types": [f"w{bits}g64" for bits in (2, 3, 4, 5, 6, 8)]},
        "budget": {"bits_per_weight": 3.0},
    },
}
"""Spaces of types, searched in a model whose channels are permuted."""

QUICK_BITS = {"bits": {"types": ["w3g32", "w4g32"]}, "budget": {"bits_per_weight": 4.2}}


def choices(text: str, calibration: str) -> dict[str, dict[str, Any]]:
    """Each choice as changes of the healing's settings; most differ from `MIXED` in one thing."""
    mixed: dict[str, Any] = {"source": {text: 1.0, calibration: 1.0}}
    former = {"batch": 2, "accumulate": 2, "learning_rate": 3e-4}
    return {
        FORMER: former,
        f"{FORMER}, fresh text": mixed | former,
        MIXED: mixed,
        CALIBRATION: {},
        "wikitext": {"source": calibration},
        "books": {"source": text},
        "self": {"source": "self"},
        "books+self": {"source": {text: 1.0, "self": 1.0}},
        "wikitext+self": {"source": {calibration: 1.0, "self": 1.0}},
        "4 a step": mixed | {"batch": 2, "accumulate": 2},
        "rate 3e-5": mixed | {"learning_rate": 3e-5},
        "rate 1e-4": mixed | {"learning_rate": 1e-4},
        "rate 3e-4": mixed | {"learning_rate": 3e-4},
        "rate 1e-3": mixed | {"learning_rate": 1e-3},
        "norms": mixed | {"train": "norms", "learning_rate": 1e-3},
        "norms, head": mixed | {"train": "norms,head", "learning_rate": 1e-3},
        "last 3, head": mixed | {"train": "last:3,head"},
        "lora": mixed | {"train": "lora", "learning_rate": 1e-3},
        "lora, norms": mixed | {"train": "lora,norms", "learning_rate": 1e-3},
        "next token": mixed | {"next_token": 0.1},
        "states": mixed | {"states": 1.0},
        "top 16": mixed | {"top_k": 16},
        "top 64": mixed | {"top_k": 64},
        "adapted teacher": mixed | {"adapt_teacher": 50_000},
        "average of 3": mixed | {"average": 3},
    }


def typed_choices(text: str, calibration: str) -> dict[str, dict[str, Any]]:
    """The same where matrices have types; by `MIXED` these stay as they are."""
    mixed: dict[str, Any] = {"source": {text: 1.0, calibration: 1.0}}
    through = mixed | {"straight_through": True}
    return {
        MIXED: mixed,
        "scales alone": mixed | {"train": "scales"},
        "scales": mixed | {"train": "all,scales"},
        "straight-through": through,
        "straight-through, scales": through | {"train": "all,scales"},
    }
