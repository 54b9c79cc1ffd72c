"""Reads checkpoints with transformers 4. Run by path, in an environment that has it.

    python transformers4_runner.py FOLDER ... < request.json > answer.json

The request: ``texts``, which are cut into tokens if there are any. A folder may hold
``batch.safetensors`` with ``input_ids``; the outputs for them are written to
``outputs.safetensors``. The answer is the last line that is printed: for each folder ``ids``, of
the texts, and ``tokenizer``, the name of its class; and ``version``.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file


def outputs(folder: Path) -> None:
    """Writes the first outputs of the model in a folder."""
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model_class = getattr(transformers, settings["architectures"][0])
    # By default one version bounds the attention of Gemma 2 and the other does not.
    model, info = model_class.from_pretrained(
        folder, torch_dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    wrong = {key: value for key, value in info.items() if value}
    if wrong:
        raise ValueError(f"{folder}: {wrong}")
    batch = load_file(folder / "batch.safetensors")["input_ids"]
    with torch.no_grad():
        first = model.eval()(batch)[0]
    save_file({"first": first.contiguous()}, folder / "outputs.safetensors")


def tokens(folder: Path, texts: list[str]) -> dict[str, Any]:
    """What the tokenizer of a folder makes of texts."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return {"ids": tokenizer(texts)["input_ids"], "tokenizer": type(tokenizer).__name__}


def main() -> None:
    """All folders one after the other."""
    request = json.load(sys.stdin)
    answer: dict[str, Any] = {"version": transformers.__version__}
    for folder in map(Path, sys.argv[1:]):
        if (folder / "batch.safetensors").exists():
            outputs(folder)
        answer[str(folder)] = tokens(folder, request["texts"]) if request["texts"] else {}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
