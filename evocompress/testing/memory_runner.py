"""What a program adds to a process's memory by loading a checkpoint and generating with it.

    python memory_runner.py llama.cpp|transformers WARM CHECKPOINT < request.json > answer.json

Run by path, in an environment that has the program. The request: ``context`` (tokens of each
sequence, the generated ones among them), ``batch`` (sequences), ``threads``. ``WARM`` is a tiny
checkpoint of the same kind, which is run first: libraries and what they keep are there then. The
answer, the last line that is printed, has ``bytes``: the most that is resident until the last of a
few tokens at the end of the context is there, less what was resident before loading; and of
llama.cpp ``cache``, the bytes that it says its cache takes. Linux only.
"""

import ctypes
import gc
import json
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

NEW = 4
"""Tokens that are generated at the end of the context."""


def resident(key: str = "VmRSS") -> int:
    """Bytes of this process that are in memory, or with ``VmHWM`` the most that were."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"^{key}:\s+(\d+) kB", status, re.MULTILINE)
    assert found is not None, f"/proc/self/status has no {key}"
    return 1024 * int(found[1])


def serve_with_llama_cpp(path: Path, context: int, batch: int, threads: int) -> None:
    """Fill and use a cache with llama.cpp's own settings, but for copies in another layout."""
    lib: Any = import_module("llama_cpp")
    said = lib.llama_log_callback(lambda level, text, data: _said.append(text.decode()))
    lib.llama_log_set(said, ctypes.c_void_p(0))
    lib.llama_backend_init()
    loading = lib.llama_model_default_params()
    loading.use_extra_bufts = False  # as --no-repack
    model = lib.llama_model_load_from_file(str(path / "model.gguf").encode(), loading)
    settings = lib.llama_context_default_params()
    settings.n_ctx, settings.n_seq_max = context * batch, batch
    settings.swa_full = False
    settings.n_threads = settings.n_threads_batch = threads
    run = lib.llama_init_from_model(model, settings)
    assert run, f"llama.cpp makes no context for {path}"
    step = settings.n_ubatch
    tokens = lib.llama_batch_init(step, 0, 1)
    pairs = [(p, s) for s in range(batch) for p in range(context - NEW)]
    steps = [pairs[begin : begin + step] for begin in range(0, len(pairs), step)]
    steps += [[(p, s) for s in range(batch)] for p in range(context - NEW, context)]
    for chosen in steps:
        tokens.n_tokens = len(chosen)
        for place, (position, sequence) in enumerate(chosen):
            tokens.token[place] = 5 + position % 100
            tokens.pos[place] = position
            tokens.n_seq_id[place], tokens.seq_id[place][0] = 1, sequence
            tokens.logits[place] = position >= context - NEW - 1
        failed = lib.llama_decode(run, tokens)
        assert not failed, f"llama.cpp failed with {failed} at {chosen[0]}"
    lib.llama_batch_free(tokens)
    _kept.extend([model, run, said])


def serve_with_transformers(path: Path, context: int, batch: int, threads: int) -> None:
    """Generate with transformers on the CPU, in the checkpoint's own type."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype="auto", trust_remote_code=True)
    # The first, short prompt touches all weights, which a long one does not have in its first pass.
    for length in (1, context - NEW):
        tokens = (5 + torch.arange(length) % 100).expand(batch, -1)
        model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            do_sample=False,
        )
    _kept.append(model)


_kept: list[Any] = []
"""What holds memory until it is measured."""

_said: list[str] = []
"""What llama.cpp logs."""

PROGRAMS = {"llama.cpp": serve_with_llama_cpp, "transformers": serve_with_transformers}

if __name__ == "__main__":
    asked = json.load(sys.stdin)
    program = PROGRAMS[sys.argv[1]]
    program(Path(sys.argv[2]), 16, asked["batch"], asked["threads"])
    _kept.clear()
    _said.clear()
    gc.collect()
    before = resident()
    Path("/proc/self/clear_refs").write_text("5")  # forgets the most that was resident
    program(Path(sys.argv[3]), asked["context"], asked["batch"], asked["threads"])
    most = resident("VmHWM") - before
    sizes = re.findall(r"KV buffer size = +([\d.]+) MiB", "".join(_said))
    print(json.dumps({"bytes": most, "cache": 2**20 * sum(map(float, sizes))}))
