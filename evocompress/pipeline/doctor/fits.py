"""How large a model may be here, as `evocompress plan` would say it of well-known shapes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import LlamaConfig

from evocompress.core.config_file import load_config, shipped_files
from evocompress.pipeline.planning.outline import outline
from evocompress.pipeline.planning.plan import HEALING, STAGES, context_of, memory_needed
from evocompress.pipeline.planning.stages import PlannedRun

RUN = "smollm2_width_70"
"""The shipped run file that is planned: of those that change the shape, the one that needs most."""

SHAPES = {
    "SmolLM2-135M": (576, 1536, 30, 9, 3, 49152),
    "SmolLM2-360M": (960, 2560, 32, 15, 5, 49152),
    "Llama-3.2-1B": (2048, 8192, 16, 32, 8, 128256),
    "Llama-3.2-3B": (3072, 8192, 28, 24, 8, 128256),
    "Llama-3.1-8B": (4096, 14336, 32, 32, 8, 128256),
    "Llama-3.1-70B": (8192, 28672, 80, 64, 8, 128256),
}
"""Hidden size, channels, layers, query heads, KV groups and vocabulary of Llama models.

The sizes are those of the models' config.json on the hub, smaller models first.
"""

TIED = 4096
"""Hidden size from which on the head has weights of its own."""


@dataclass(frozen=True)
class Need:
    """What a run on a model needs.

    Attributes:
        model: Its name.
        parameters: Of it.
        dtype: In which it is computed.
        search: Bytes of memory of library and search.
        heal: Bytes of memory of the healing.
        disk: Bytes of files that all write.
    """

    model: str
    parameters: int
    dtype: str
    search: int
    heal: int
    disk: int


def needs(*, on_cpu: bool) -> Iterator[Need]:
    """What the shipped run needs for each shape, on the CPU or on a GPU, smaller shapes first.

    Examples:
        >>> first = next(needs(on_cpu=False))
        >>> first.model, first.parameters, first.search < first.heal
        ('SmolLM2-135M', 134515008, True)
    """
    with TemporaryDirectory() as folder:
        config = load_config(shipped_files()[RUN], [f"model.source={json.dumps(folder)}"])
        for name in SHAPES:
            _write_config(Path(folder), name)
            loaded = outline(folder, "auto", on_cpu=on_cpu)
            run = PlannedRun(context_of(config, loaded), shared=on_cpu)
            stages = [stage for make in STAGES.values() if (stage := make(run)) is not None]
            yield Need(
                name,
                sum(parameter.numel() for parameter in loaded.model.parameters()),
                str(run.dtype).removeprefix("torch."),
                search=max(memory_needed(run, each) for each in stages if each.name not in HEALING),
                heal=max(memory_needed(run, each) for each in stages if each.name in HEALING),
                disk=sum(each.disk_bytes for each in stages),
            )


def _write_config(folder: Path, name: str) -> None:
    hidden, channels, layers, heads, groups, vocabulary = SHAPES[name]
    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        hidden_size=hidden,
        intermediate_size=channels,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        vocab_size=vocabulary,
        tie_word_embeddings=hidden < TIED,
        dtype="bfloat16",
    ).save_pretrained(folder)
