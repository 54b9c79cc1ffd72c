"""The configuration of a run: pydantic models in which unknown keys are errors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field

from evocompress.core.fields import (
    Bytes,
    Cores,
    DeviceName,
    Length,
    Many,
    Name,
    Number,
    Positive,
    RuntimeEnv,
    Seed,
    Size,
    Source,
    Strict,
    Tokens,
    Whole,
    each_once,
)
from evocompress.core.heal_config import HealConfig, HealLastConfig
from evocompress.core.precision_config import BitsSpace, CacheSpace
from evocompress.core.space_config import (
    DropSpace,
    MemoryConfig,
    SpaceConfig,
    SparsitySpace,
    WidthSpace,
)

__all__ = [
    "BitsSpace",
    "CacheSpace",
    "CalibrationConfig",
    "DropSpace",
    "EvaluateConfig",
    "HealConfig",
    "HealLastConfig",
    "LatencyConfig",
    "LibraryConfig",
    "MemoryConfig",
    "ModelConfig",
    "ProxyConfig",
    "RayConfig",
    "RunConfig",
    "SearchConfig",
    "SpaceConfig",
    "SparsitySpace",
    "WidthSpace",
]


class ModelConfig(Strict):
    """Which model, and how it is held.

    Attributes:
        source: Local folder, hub id, ``.gguf`` file, or ``demo:smollm2-135m``.
        dtype: ``auto`` takes the checkpoint's, or float32 on a CPU that is slow at that.
        device: ``auto`` takes a GPU where there is one.
        device_memory: Weights that may be on the device at a time, in bytes or as ``20GiB``:
            a model with more is streamed there block by block. ``None`` puts all of it there.
        trust_remote_code: Run code that comes with the checkpoint.

    Examples:
        >>> ModelConfig(source="demo:smollm2-135m").dtype
        'auto'
    """

    source: Annotated[str, Field(min_length=1)]
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: DeviceName = "auto"
    device_memory: Bytes | None = None
    trust_remote_code: bool = False


class CalibrationConfig(Strict):
    """Where the tokens come from and how they are cut; the parts never overlap.

    Attributes:
        source: ``self`` (text the model writes), a text file, a ``.jsonl``, ``.json``, ``.csv`` or
            ``.parquet`` file, a folder of token safetensors, or
            ``datasets:NAME[:CONFIG[:SPLIT]]``; for a model of images, a folder of safetensors
            with ``pixel_values``.
        heldout_source: The same choices for the held-out part; ``None`` cuts it from `source`.
        field: Which field of files with fields and of data sets is the text, or a conversation;
            by default the first there is of ``text``, ``content``, ``document``, ``messages`` and
            ``conversations``.
        library_sequences: Sequences for the statistics of the level library.
        search_sequences: Sequences of the pool that the search draws from.
        heldout_sequences: Sequences that only the evaluation sees.
        length: Tokens of a sequence, with those that begin and end an encoder's; images have their
            own.
        micro_batch: Sequences of a micro-batch; ``proxy.kind: embedding`` compares those of one
            with each other, for which 8 or more are better.
        bos: Whether every sequence begins with the beginning-of-text token, which counts towards
            the length; ``auto`` where the tokenizer puts one before a text.
        seed: Seed of the text the model writes.

    Examples:
        >>> CalibrationConfig(source="text.txt", length=256).search_sequences
        64
    """

    source: Source = "self"
    heldout_source: Source | None = None
    field: Annotated[str, Field(min_length=1)] | None = None
    library_sequences: Many = 64
    search_sequences: Many = 64
    heldout_sequences: Many = 16
    length: Length = 512
    micro_batch: Size = 2
    bos: Literal["auto"] | bool = "auto"
    seed: Seed = 0


class LibraryConfig(Strict):
    """How the level library is made.

    Attributes:
        path: Folder; ``None`` puts it into the run folder.
        criterion: How matrices get zeros: a name from `evocompress.compression.criteria.CRITERIA`,
            perhaps with refinements after it, as in ``wanda+swaps+update`` or ``wanda+bias``.
        width_criterion: How sub-layers are narrowed: a name from
            `evocompress.compression.criteria.STRUCTURED`.
        reconstruct: Refit what is left of a narrowed sub-layer by least squares (LIAR,
            2407.13331).
        hessians: Statistics from the ``dense`` model (as EvoPress) or ``propagated`` through
            the blocks compressed so far (as SparseGPT).
        damping: Fraction of the mean diagonal added to a Hessian.
        rounding: How weights are rounded to a coarser type with equal steps: ``gptq``, where later
            inputs make good for each error (2210.17323), or to the ``nearest`` value, with
            llama.cpp's types by its own code. Types without equal steps are always made by that.
        cache_mib: Memory for matrices of narrowed sub-layers that have zeros or a coarser type,
            which are made when they are first needed.

    Examples:
        >>> LibraryConfig(criterion="wanda").width_criterion
        'obs_structured'
    """

    path: Path | None = None
    criterion: str = "sparsegpt"
    width_criterion: str = "obs_structured"
    reconstruct: bool = False
    hessians: Literal["dense", "propagated"] = "dense"
    damping: Annotated[Number, Field(gt=0, le=1000)] = 0.01
    rounding: Literal["gptq", "nearest"] = "gptq"
    cache_mib: Positive = 2048


class ProxyConfig(Strict):
    """How good a candidate is.

    Attributes:
        kind: ``kl`` to the dense model, ``perplexity`` (its logarithm is what is kept), ``js``
            (Jensen-Shannon divergence) or ``cosine`` (distance of the final hidden states);
            ``embedding`` for embedding models (distance of embeddings and their similarities);
            ``score`` for reward models and rerankers (squared error of their scores).
            Of a classifier ``kl`` and ``js`` are over its classes. Or another name from
            `evocompress.evaluation.proxies.PROXIES`.
        top_k: Teacher probabilities kept for each position; the rest is one bucket.
        targets: Where these are kept: in ``memory``, on the device, or on ``disk``, in a temporary
            folder, from where they are mapped.

    Examples:
        >>> ProxyConfig().kind
        'kl'
    """

    kind: str = "kl"
    top_k: Annotated[Positive, Field(le=2**24)] = 256
    targets: Literal["memory", "disk"] = "memory"


class SearchConfig(Strict):
    """The searcher and its own settings, which its class validates.

    Attributes:
        name: A name from `evocompress.search.SEARCHERS`.
        tokens: The most tokens that may be requested; the run ends before it would ask for more.
        heal_last: Heal the last candidates for a short time and choose the winner among them by
            the validation KL after that; ``None`` chooses it by the proxy before any healing.

    Examples:
        >>> SearchConfig(name="evopress", generations=5).settings
        {'generations': 5}
    """

    model_config = ConfigDict(extra="allow")

    name: str = "auto"
    tokens: Tokens | None = None
    heal_last: HealLastConfig | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The keys that belong to the searcher."""
        return dict(self.model_extra or {})


class EvaluateConfig(Strict):
    """What the final evaluation measures beside KL and perplexity.

    Attributes:
        latency: Whether to time the models.
        prefill: (batch, tokens) of the timed prefill.
        decode: (context tokens, new tokens) of the timed decoding, batch 1.
        repeats: Timings of each, at least; all models take turns.
        ratio_width: There are more turns until the 95% interval of every model's time as a share
            of the dense model's is no wider, as a fraction of its lower end,
        latency_seconds: or until these seconds were timed, of prefill and of decoding each.
        texts: Further texts to measure on, sources as of ``calibration.source``.
        tasks: Tasks that are asked: files ``NAME.jsonl`` of a folder, or lm-evaluation-harness's.
        tasks_folder: That folder.
        limit: Only the first questions of each task.
        tasks_batch: Answers that are scored at once.

    Examples:
        >>> EvaluateConfig(latency=False).prefill
        (1, 512)
    """

    latency: bool = True
    prefill: tuple[Size, Positive] = (1, 512)
    decode: tuple[Positive, Positive] = (128, 32)
    repeats: Size = 5
    ratio_width: Annotated[Number, Field(gt=0, le=10)] = 0.03
    latency_seconds: Annotated[Number, Field(ge=0, le=86_400)] = 60
    texts: Annotated[tuple[Source, ...], AfterValidator(each_once)] = ()
    tasks: Annotated[tuple[Name, ...], AfterValidator(each_once)] = ()
    tasks_folder: Path | None = None
    limit: Positive | None = None
    tasks_batch: Size = 8


class LatencyConfig(Strict):
    """How latency is measured as a cost, and what for.

    Attributes:
        prefill: (batch, tokens) of the prompt that ``latency`` is about.
        decode: (batch, context tokens) of the step that ``decode_latency`` is about.
        repeats: Timings of each entry; their median counts.
        validation: Random whole candidates that check the table and fit scale and offset.
        table: File of the table; ``None`` keeps it with the tables of other devices in the
            cache folder.
        force: Use a table that was measured under other circumstances: device, dtype, threads,
            attention kernel, version of torch, model of the same widths, batch and length of
            prefill or decoding step, way of measuring.

    Examples:
        >>> LatencyConfig(prefill=(4, 256)).repeats
        7
    """

    prefill: tuple[Size, Positive] = (1, 512)
    decode: tuple[Size, Positive] = (1, 128)
    repeats: Annotated[Size, Field(ge=3)] = 7
    validation: Annotated[Size, Field(ge=4)] = 20
    table: Path | None = None
    force: bool = False


class RayConfig(Strict):
    """Where candidates are evaluated with ``executor: ray``.

    Attributes:
        address: Of a cluster; ``auto`` is the one that this machine belongs to, ``None`` starts
            one on this machine alone.
        workers: How many hold the model; ``auto`` is as many as there are GPUs, or as the CPUs
            of the cluster allow.
        cpus: CPU cores of each.
        gpus: GPUs of each; ``None`` is one where there are any.
        storage: Folder from which every node copies the level library, once, to its own cache:
            ``/shared/folder``, ``s3://bucket/folder`` or whatever fsspec knows. ``None``: all
            nodes see the library under its own path.
        runtime_env: Of the workers, as Ray has it: ``pip``, ``env_vars``, ``working_dir``, ...
            Values of ``env_vars`` are written nowhere; one that is null is that of the command.

    Examples:
        >>> RayConfig(workers=2).cpus
        1
    """

    address: str | None = None
    workers: Size | Literal["auto"] = "auto"
    cpus: Annotated[Number, Field(gt=0, le=1024)] = 1
    gpus: Annotated[Number, Field(ge=0, le=1024)] | None = None
    storage: str | None = None
    runtime_env: RuntimeEnv = {}


class RunConfig(Strict):
    """Everything a run needs; written resolved into the run folder.

    Attributes:
        name: Name of the run's folder below `runs`.
        runs: Folder of all runs.
        seed: Seed of the search.
        threads: CPU threads of torch; ``None`` leaves torch's choice.
        executor: Where candidates are evaluated, the level library built, the latency table
            measured and the checkpoint healed: ``local`` or ``ray``.
        ray: How, with ``executor: ray``.
        rounds: Of searching and healing, each of which cuts a part of the budget; more than one
            are made by `evocompress.api.rounds`.

    Examples:
        >>> run = RunConfig(name="depth", model={"source": "tiny"}, space={"drop": {}})
        >>> run.folder, run.search.name
        (PosixPath('runs/depth'), 'auto')
    """

    name: Name
    runs: Path = Path("runs")
    seed: Seed = 0
    threads: Cores | None = None
    executor: str = "local"
    ray: RayConfig = RayConfig()
    rounds: Annotated[Whole, Field(ge=1, le=100)] = 1
    model: ModelConfig
    calibration: CalibrationConfig = CalibrationConfig()
    space: SpaceConfig
    library: LibraryConfig = LibraryConfig()
    latency: LatencyConfig = LatencyConfig()
    proxy: ProxyConfig = ProxyConfig()
    search: SearchConfig = SearchConfig()
    heal: HealConfig = HealConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.runs / self.name
