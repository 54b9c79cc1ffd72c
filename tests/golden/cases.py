"""The searches: other families, spaces, searchers, criteria and proxies in each.

All of them compute in float32 on one thread of the CPU, whatever the machine offers.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from evocompress.core.config import RunConfig
from evocompress.core.config_file import load_config
from evocompress.testing.tiny import tiny_checkpoint

TEXT = " ".join(f"word{number * number % 97}" for number in range(3000))

COMMON: dict[str, Any] = {
    "name": "golden",
    "seed": 7,
    "threads": 1,
    "calibration": {
        "library_sequences": 6,
        "search_sequences": 8,
        "heldout_sequences": 4,
        "length": 32,
        "micro_batch": 4,
    },
}


@dataclass(frozen=True)
class Case:
    """One search.

    Attributes:
        name: Of its folder below ``records/``.
        family: One of `evocompress.testing.tiny.NAMES`.
        space: Of the run file, as the others.
        search: Its name and settings.
        library: How its library is made.
        proxy: What it compares by.
    """

    name: str
    family: str
    space: dict[str, Any]
    search: dict[str, Any]
    library: dict[str, Any] = field(default_factory=dict)
    proxy: dict[str, Any] = field(default_factory=dict)

    def config(self, home: Path, **more: Any) -> RunConfig:
        """The run in a folder, with the model, the text and the run file that it needs.

        Args:
            home: Where everything lies.
            more: Other keys of the run file.
        """
        model = home / "model"
        if not model.exists():
            tiny_checkpoint(model, self.family)
            (home / "text.txt").write_text(TEXT)
        told = deepcopy(COMMON) | {
            "runs": str(home / "runs"),
            "model": {"source": str(model), "dtype": "float32", "device": "cpu"},
            "space": self.space,
            "search": self.search,
            "library": self.library,
            "proxy": self.proxy,
        }
        told["calibration"]["source"] = str(home / "text.txt")
        (home / "run.yaml").write_text(yaml.safe_dump(told | more))
        return load_config(home / "run.yaml")


CASES = (
    Case(
        "evopress_llama_sparsity",
        "llama",
        {"sparsity": {"target": 0.5, "step": 128, "levels": 3}},
        {
            "name": "evopress",
            "generations": 5,
            "offspring": 4,
            "survivors": [2, 1],
            "stage_tokens": [128, 256],
        },
    ),
    Case(
        "auto_qwen2_sublayers",
        "qwen2",
        {"drop": {"units": ["attention", "mlp"]}, "budget": {"body_params": 0.6}},
        {"name": "auto", "tokens": 12000},
    ),
    Case(
        "auto_gpt2_width",
        "gpt2",
        {
            "width": {"channels": [0.75, 0.5, 0.25], "multiple_of": 16},
            "budget": {"body_params": 0.7},
        },
        {"name": "auto", "tokens": 6500},
    ),
    Case(
        "greedy_gemma3_joint",
        "gemma3_text",
        {
            "sparsity": {"target": 0.3, "levels": 1, "step": 512},
            "width": {"channels": [0.5], "kv_groups": [1], "group_heads": [2], "multiple_of": 32},
            "drop": {"units": ["attention", "mlp"]},
            "budget": {"body_nonzeros": 0.5},
        },
        {"name": "greedy", "tokens": 6000, "candidate_tokens": 128},
        {"criterion": "wanda", "width_criterion": "flap", "reconstruct": True},
        {"kind": "js"},
    ),
    Case(
        "nsga2_llama_front",
        "llama",
        {"width": {"channels": [0.75, 0.5, 0.25], "multiple_of": 32}, "drop": {}},
        {
            "name": "nsga2",
            "objectives": ["body_params"],
            "range": {"body_params": [0.4, 1.0]},
            "reference": ["uniform", "flap"],
            "population": 10,
            "candidate_tokens": 128,
            "front_tokens": 256,
            "front_size": 6,
            "tokens": 8000,
        },
        {"width_criterion": "minitron"},
    ),
    Case(
        "auto_mixtral_experts",
        "mixtral",
        {"drop": {"units": ["expert"]}, "budget": {"body_params": 0.7}},
        {"name": "auto", "tokens": 3600},
    ),
    Case(
        "tpe_bert_embeddings",
        "bert",
        {"sparsity": {"match": ["*output*"], "target": 0.5, "step": 512, "levels": 2}},
        {"name": "tpe", "tokens": 9000},
        {"hessians": "propagated"},
        {"kind": "embedding"},
    ),
    Case(
        "moasha_gemma2_pattern",
        "gemma2",
        {
            "sparsity": {"target": 0.5, "pattern": "2:4", "levels": 0},
            "drop": {"protect": []},
            "budget": {"body_nonzeros": 0.3},
        },
        {"name": "moasha", "configurations": 20, "batch": 6, "grace_tokens": 128, "eta": 2},
        {"criterion": "magnitude"},
        {"kind": "cosine"},
    ),
    Case(
        "blockpruner_opt_sublayers",
        "opt",
        {"drop": {"protect": []}, "budget": {"body_params": 0.5}},
        {"name": "blockpruner"},
        {},
        {"kind": "perplexity"},
    ),
    Case(
        "darwinlm_qwen3_width",
        "qwen3",
        {"width": {"channels": [0.75, 0.5], "multiple_of": 32}, "budget": {"body_params": 0.7}},
        {
            "name": "darwinlm",
            "generations": 2,
            "offspring": 3,
            "survivors": [2, 1],
            "stage_tokens": [128, 256],
            "tuning_tokens": [128, 256],
        },
        {"width_criterion": "taylor"},
    ),
)
"""Named by searcher, family and space."""
