"""A small image model on scikit-learn's digits: true accuracy before and after compression.

A vision transformer, or with ``--model resnet`` a CNN, is trained on 1,437 of the 1,797 images of
8 x 8 pixels; accuracy is that on the other 360, which neither training nor compression sees.
NSGA-II looks for a front of divergence and FLOPs; its best candidate with at most half of the FLOPs
is written, healed by distillation and measured.

- `dense_accuracy`, `searched_accuracy`, `healed_accuracy`: share of the 360 images, in percent; and
  `even_accuracy` of a candidate that is narrowed evenly to the same FLOPs.
- `lost_points`: of accuracy after healing, against the dense model; at most 1 is the aim.
- `flops`: of the written checkpoint, counted by torch, as a share of the dense model's.
- `front_points`: on the front of the search; at least 8 is the aim.
- `training_seconds`, `search_seconds`, `healing_seconds`.

    python benchmarks/digits.py --json digits.json
    python benchmarks/digits.py --model resnet --json digits-resnet.json

A ResNet halves its images four times, so it sees the digits enlarged to 32 x 32 pixels.
``--quick`` trains and searches so shortly that the figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import Figure, emit
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from transformers import (
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from evocompress import api
from evocompress.core.config import RunConfig
from evocompress.models.checkpoints import quiet_transformers

SEED = 0
HELD_OUT = 360
EIGHTHS = [eighths / 8 for eighths in range(1, 9)]


@dataclass(frozen=True)
class Sizes:
    """How much is done.

    Attributes:
        epochs: Of training, at most.
        population: Of NSGA-II.
        images: That its search may request, repeats included.
        steps: Of healing.
    """

    epochs: int = 30
    population: int = 24
    images: int = 60_000
    steps: int = 400


QUICK = Sizes(epochs=1, population=8, images=20_000, steps=4)


@dataclass(frozen=True, eq=False)
class Digits:
    """Images (N, 1, 8, 8) in -1 to 1, and their classes (N,)."""

    pixels: Tensor
    labels: Tensor


def main() -> None:
    """Train, compress, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="vit")
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sizes = QUICK if arguments.quick else Sizes()
        figures = measure(Path(folder), sizes, MODELS[arguments.model])
    name = "digits" if arguments.model == "vit" else f"digits-{arguments.model}"
    emit(name, figures, arguments.json)


def measure(folder: Path, sizes: Sizes, kind: Kind) -> dict[str, Figure]:
    """All figures; models and data are written below `folder`."""
    train, heldout = (enlarged(part, kind.enlarge) for part in digits())
    seconds: dict[str, float] = {}
    begun = time.monotonic()
    model = trained(kind.make(), train, min(kind.epochs, sizes.epochs))
    seconds["training_seconds"] = time.monotonic() - begun
    with quiet_transformers():
        model.save_pretrained(folder / "model")
    for name, part in (("train", train), ("heldout", heldout)):
        (folder / name).mkdir()
        tensors = {"pixel_values": part.pixels.contiguous(), "labels": part.labels}
        save_file(tensors, folder / name / "images.safetensors")
    return compressed(folder, sizes, kind) | seconds


def digits() -> tuple[Digits, Digits]:
    """The images to train on, and those that are held out, with as many of each class."""
    data = load_digits()
    split = train_test_split(
        data.images, data.target, test_size=HELD_OUT, random_state=SEED, stratify=data.target
    )
    pixels = [torch.tensor(part, dtype=torch.float32)[:, None] / 8 - 1 for part in split[:2]]
    labels = [torch.tensor(part, dtype=torch.int64) for part in split[2:]]
    return Digits(pixels[0], labels[0]), Digits(pixels[1], labels[1])


def enlarged(data: Digits, times: int) -> Digits:
    """The same with each pixel as a square of so many."""
    pixels = data.pixels.repeat_interleave(times, dim=2).repeat_interleave(times, dim=3)
    return Digits(pixels, data.labels)


def vit() -> PreTrainedModel:
    """A ViT of four blocks over patches of 2 x 2 pixels."""
    torch.manual_seed(SEED)
    config = ViTConfig(
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=256,
        image_size=8,
        patch_size=2,
        num_channels=1,
        num_labels=10,
    )
    return ViTForImageClassification(config)


def resnet() -> PreTrainedModel:
    """A ResNet of basic layers in three stages."""
    torch.manual_seed(SEED)
    config = ResNetConfig(
        num_channels=1,
        embedding_size=16,
        hidden_sizes=[16, 32, 64],
        depths=[2, 2, 2],
        layer_type="basic",
        image_size=32,
        num_labels=10,
    )
    return ResNetForImageClassification(config)


@dataclass(frozen=True)
class Kind:
    """A kind of model.

    Attributes:
        make: Makes one that is not trained.
        enlarge: How many times wider and higher than the digits its images are.
        tokens: Of an image.
        epochs: Of training.
        space: What may be compressed.
    """

    make: Callable[[], PreTrainedModel]
    enlarge: int
    tokens: int
    epochs: int
    space: Mapping[str, Any]


MODELS = {
    "vit": Kind(
        vit,
        enlarge=1,
        tokens=17,  # 16 patches and the class
        epochs=30,
        space={"width": {"multiple_of": 16}, "drop": {"units": ["attention", "mlp"]}},
    ),
    "resnet": Kind(
        resnet,
        enlarge=4,
        tokens=1,
        epochs=15,
        space={
            "width": {"units": ["mlp"], "channels": EIGHTHS, "multiple_of": 2},
            "drop": {"units": ["mlp"]},
        },
    ),
}


def trained(model: PreTrainedModel, data: Digits, epochs: int) -> PreTrainedModel:
    """The model after training with AdamW."""
    model.train()
    batches = -(-len(data.labels) // 64)
    parameters, rate, steps = model.parameters(), 2e-3, epochs * batches
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.95), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.2)
    for _ in range(epochs):
        for chosen in torch.randperm(len(data.labels)).split(64):
            loss = model(data.pixels[chosen], labels=data.labels[chosen]).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    return model.eval()


def compressed(folder: Path, sizes: Sizes, kind: Kind) -> dict[str, Figure]:
    """The figures of search, checkpoint and healing."""
    begun = time.monotonic()
    run = api.search(config(folder, sizes, kind))
    searched = time.monotonic()
    front = json.loads((run / "front.json").read_text())
    dense = json.loads((run / "winner.json").read_text())["dense_costs"]["flops"]
    api.materialize(run, candidate=best_of_half(front, dense))
    begun_healing = time.monotonic()
    api.heal(run)
    healed = time.monotonic()
    rows = {row["name"]: row for row in json.loads(api.evaluate(run).read_text())["rows"]}
    _, _, candidate, healed_candidate = rows  # named after what was chosen from the front
    accuracy = {name: 100 * row["accuracy"] for name, row in rows.items()}
    return {
        "dense_accuracy": accuracy["dense"],
        "even_accuracy": accuracy["uniform"],
        "searched_accuracy": accuracy[candidate],
        "healed_accuracy": accuracy[healed_candidate],
        "lost_points": accuracy["dense"] - accuracy[healed_candidate],
        "flops": rows[healed_candidate]["flops"] / rows["dense"]["flops"],
        "front_points": sum(row["non_dominated"] for row in front),
        "search_seconds": searched - begun,
        "healing_seconds": healed - begun_healing,
    }


def best_of_half(front: list[Mapping[str, Any]], dense: float) -> str:
    """The id of the best candidate with at most half of the FLOPs."""
    fitting = [row for row in front if row["costs"]["flops"] <= 0.5 * dense]
    best: str = min(fitting, key=lambda row: row["value"])["id"]
    return best


def config(folder: Path, sizes: Sizes, kind: Kind) -> RunConfig:
    """The run: heads, channels and sub-layers, for divergence and FLOPs."""
    tokens = kind.tokens
    return RunConfig.model_validate(
        {
            "name": "digits",
            "runs": folder,
            "model": {"source": str(folder / "model")},
            "calibration": {
                "source": str(folder / "train"),
                "heldout_source": str(folder / "heldout"),
                "library_sequences": 512,
                "search_sequences": 384,
                "heldout_sequences": HELD_OUT,
                "micro_batch": 128,
            },
            "space": kind.space,
            "search": {
                "name": "nsga2",
                "objectives": ["flops"],
                "range": {"flops": [0.3, 1.0]},
                "population": sizes.population,
                "candidate_tokens": 128 * tokens,
                "front_tokens": 384 * tokens,
                "effect_rounds": 1,
                "tokens": sizes.images * tokens,
            },
            "heal": {
                "steps": sizes.steps,
                "batch": 64,
                "accumulate": 1,
                "learning_rate": 1e-3,
                "validation_sequences": 128,
                "evaluate_every": 50,
            },
            "evaluate": {"latency": False},
        }
    )


if __name__ == "__main__":
    main()
