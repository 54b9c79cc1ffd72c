"""The configuration of a run: pydantic models in which unknown keys are errors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from evocompress.fields import (
    Bytes,
    Cores,
    Device,
    Globs,
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
)


class ModelConfig(Strict):
    """Which model, and how it is held.

    Attributes:
        source: Local folder, hub id, ``.gguf`` file, or ``demo:smollm2-135m``.
        dtype: ``auto`` takes the checkpoint's, or float32 on a CPU that is slow at that.
        device: ``auto`` takes a GPU where there is one.
        device_memory: Weights that may be on the device at a time, in bytes or as ``20GiB``:
            a model with more is streamed there block by block. ``None`` puts all of it there.
        trust_remote_code: Run code that comes with the checkpoint.
    """

    source: Annotated[str, Field(min_length=1)]
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: Device = "auto"
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
        micro_batch: Sequences of a micro-batch.
        bos: Whether every sequence begins with the beginning-of-text token, which counts towards
            the length; ``auto`` where the tokenizer puts one before a text.
        seed: Seed of the text the model writes.
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


class SparsitySpace(Strict):
    """Sparsity levels of matrices: target ± k·step zeros, k = 0..levels (EvoPress, 2410.14649).

    Attributes:
        match: Globs over names of matrix units.
        target: Fraction of zeros at level 0, from a thousandth to all but a thousandth.
        step: Weights between two levels, the same count for every matrix, so that a swap
            keeps the total; ``auto`` is half of min(target, 1 - target) / levels of the
            smallest square matrix of the model's width.
        levels: How many levels up and down.
        pattern: ``"N:M"`` for semi-structured zeros; then the only level is the target.
    """

    match: Annotated[Globs, Field(min_length=1)] = ("*",)
    target: Annotated[Number, Field(ge=0.001, le=0.999)]
    step: Positive | Literal["auto"] = "auto"
    levels: Annotated[Whole, Field(ge=0, le=100)] = 6
    pattern: str = ""

    @model_validator(mode="after")
    def _pattern_makes_the_target(self) -> SparsitySpace:
        if not self.pattern:
            return self
        found = re.fullmatch(r"([0-9]{1,3}):([0-9]{1,3})", self.pattern)
        zeros, group = map(int, found.groups()) if found else (0, 0)
        if not 0 < zeros < group:
            raise ValueError(f"pattern '{self.pattern}' must look like 2:4, N zeros in each M > N")
        if abs(zeros / group - self.target) > 1e-9:
            raise ValueError(
                f"pattern '{self.pattern}' makes N zeros in each M inputs, so target must be "
                f"{zeros / group:g}; it is {self.target:g}"
            )
        return self


class DropSpace(Strict):
    """Which sub-layers or blocks may be removed.

    Attributes:
        units: ``[attention, mlp]``, one of them, or ``[block]``; of a mixture of experts also
            ``expert``, alone or beside them.
        protect: Globs over names of units that are never removed; by default the first
            attention, which several programs cannot do without, and so with ``[block]`` the
            first block.
        merge: Removed blocks are merged into the last kept block before them (LaCo,
            2402.11187); only with ``[block]``.
    """

    units: tuple[Literal["attention", "mlp", "block", "expert"], ...] = ("attention", "mlp")
    protect: Globs | None = None
    merge: bool = False

    @field_validator("units")
    @classmethod
    def _not_mixed(cls, units: tuple[str, ...]) -> tuple[str, ...]:
        if not units or ("block" in units and set(units) & {"attention", "mlp"}):
            raise ValueError("give [block], or one or both of [attention, mlp]")
        return units

    @model_validator(mode="after")
    def _merges_blocks(self) -> DropSpace:
        if self.merge and self.units != ("block",):
            raise ValueError("merge needs units: [block]")
        return self


Width = Annotated[Number, Field(gt=0, le=10**7)]
Widths = Annotated[tuple[Width, ...], Field(min_length=1, max_length=1000)]


class WidthSpace(Strict):
    """Which widths the sub-layers may have; a width of at most 1 is a fraction, else a count.

    Beside counts above 1, a 1 is a count as well: ``kv_groups: [1, 2]``.

    Attributes:
        units: ``[attention, mlp]`` or one of them.
        channels: FFN channels kept, rounded up to a multiple of `multiple_of`.
        kv_groups: Key-value heads kept; ``all`` is every number of them.
        group_heads: Query heads kept in each kept group; ``all`` is every number of them.
        multiple_of: Of the number of channels; hardware likes 32, 64 or 256.
        uniform: Every layer has the same width, so that the result loads in stock classes.
        protect: Globs over names of units that keep their width; by default the first
            attention, or nothing where `uniform`.
    """

    units: Annotated[tuple[Literal["attention", "mlp"], ...], Field(min_length=1)] = (
        "attention",
        "mlp",
    )
    channels: Widths = (0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125)
    kv_groups: Widths | Literal["all"] = "all"
    group_heads: Widths | Literal["all"] = "all"
    multiple_of: Positive = 32
    uniform: bool = False
    protect: Globs | None = None

    @model_validator(mode="after")
    def _uniform_protects_nothing(self) -> WidthSpace:
        if self.uniform and self.protect:
            raise ValueError("uniform ties all layers, so protect must be empty")
        return self


class SpaceConfig(Strict):
    """What may be compressed and within which budget.

    Attributes:
        sparsity: Zeros in matrices.
        width: Narrower attention and FFN.
        drop: Removed sub-layers or blocks.
        budget: Upper bounds {cost name: bound}; a bound of at most 1 is always a fraction of
            the dense model, a larger one is absolute: a latency of under a second is given as
            a fraction. See `evocompress.costs.COSTS`.
        fits: A checkpoint format, a key of `evocompress.export.FORMATS`, or a program, a key of
            `evocompress.export.PROGRAMS`, that every candidate must be written in or loaded by.
    """

    sparsity: SparsitySpace | None = None
    width: WidthSpace | None = None
    drop: DropSpace | None = None
    budget: dict[str, Annotated[Number, Field(gt=0, le=1e18)]] = {}
    fits: str | None = None


class LibraryConfig(Strict):
    """How the level library is made.

    Attributes:
        path: Folder; ``None`` puts it into the run folder.
        criterion: How matrices get zeros: a name from `evocompress.criteria.CRITERIA`.
        width_criterion: How sub-layers are narrowed: a name from
            `evocompress.criteria.STRUCTURED`.
        reconstruct: Refit what is left of a narrowed sub-layer by least squares (LIAR,
            2407.13331).
        hessians: Statistics from the ``dense`` model (as EvoPress) or ``propagated`` through
            the blocks compressed so far (as SparseGPT).
        damping: Fraction of the mean diagonal added to a Hessian.
        cache_mib: Memory for matrices that are both narrowed and given zeros, which are made
            when they are first needed.
    """

    path: Path | None = None
    criterion: str = "sparsegpt"
    width_criterion: str = "obs_structured"
    reconstruct: bool = False
    hessians: Literal["dense", "propagated"] = "dense"
    damping: Annotated[Number, Field(gt=0, le=1000)] = 0.01
    cache_mib: Positive = 2048


class ProxyConfig(Strict):
    """How good a candidate is.

    Attributes:
        kind: ``kl`` to the dense model, ``perplexity`` (its logarithm is what is kept), ``js``
            (Jensen-Shannon divergence) or ``cosine`` (distance of the final hidden states);
            ``embedding`` for embedding models (distance of embeddings and their similarities);
            ``score`` for reward models and rerankers (squared error of their scores).
            Of a classifier ``kl`` and ``js`` are over its classes.
        top_k: Teacher probabilities kept for each position; the rest is one bucket.
        targets: Where these are kept: in ``memory``, on the device, or on ``disk``, in a temporary
            folder, from where they are mapped.
    """

    kind: Literal["kl", "perplexity", "js", "cosine", "embedding", "score"] = "kl"
    top_k: Annotated[Positive, Field(le=2**24)] = 256
    targets: Literal["memory", "disk"] = "memory"


class SearchConfig(Strict):
    """The searcher and its own settings, which its class validates.

    Attributes:
        name: A name from `evocompress.search.SEARCHERS`.
        tokens: The most tokens that may be requested; the run ends before it would ask for more.
    """

    model_config = ConfigDict(extra="allow")

    name: str = "auto"
    tokens: Tokens | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The keys that belong to the searcher."""
        return dict(self.model_extra or {})


class HealConfig(Strict):
    """Logit distillation from the dense model (Minitron, 2407.14679).

    Attributes:
        steps: Optimizer steps.
        batch: Sequences of a micro-step.
        accumulate: Micro-steps of an optimizer step.
        learning_rate: Peak, reached after `warmup` and followed by a cosine to a tenth.
        warmup: Fraction of the steps.
        weight_decay: AdamW's.
        clip: Largest gradient norm.
        evaluate_every: Steps between two measurements on the validation sequences.
        validation_sequences: Sequences kept from training to choose the best checkpoint; they
            come from the search part, never from the held-out part.
        seed: Order of the sequences.
    """

    steps: Positive = 200
    batch: Size = 2
    accumulate: Size = 2
    learning_rate: Annotated[Number, Field(gt=0, le=1)] = 3e-4
    warmup: Annotated[Number, Field(ge=0, lt=1)] = 0.1
    weight_decay: Annotated[Number, Field(ge=0, le=100)] = 0.0
    clip: Annotated[Number, Field(gt=0, le=1e6)] = 1.0
    evaluate_every: Positive = 25
    validation_sequences: Many = 8
    seed: Seed = 0


class EvaluateConfig(Strict):
    """What the final evaluation measures beside KL and perplexity.

    Attributes:
        latency: Whether to time the models.
        prefill: (batch, tokens) of the timed prefill.
        decode: (context tokens, new tokens) of the timed decoding, batch 1.
        repeats: Timings of each, at least; all models take turns.
        ratio_width: There are more turns until the 95% interval of every model's time as a share
            of the dense model's is no wider, as a fraction of its lower end,
        latency_seconds: or until so many seconds were timed, of prefill and of decoding each.
    """

    latency: bool = True
    prefill: tuple[Size, Positive] = (1, 512)
    decode: tuple[Positive, Positive] = (128, 32)
    repeats: Size = 5
    ratio_width: Annotated[Number, Field(gt=0, le=10)] = 0.03
    latency_seconds: Annotated[Number, Field(ge=0, le=86_400)] = 60


class LatencyConfig(Strict):
    """How latency is measured as a cost, and what for.

    Attributes:
        prefill: (batch, tokens) of the prompt that ``latency`` is about.
        decode: (batch, context tokens) of the step that ``decode_latency`` is about.
        repeats: Timings of each entry, of which the median counts.
        validation: Random whole candidates that check the table and fit scale and offset.
        table: File of the table; ``None`` keeps it with the tables of other devices in the
            cache folder.
        force: Use a table that was measured under other circumstances: device, dtype, threads,
            attention kernel, version of torch, model of the same widths, batch and length of
            prefill or decoding step, way of measuring.
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
            measured and the checkpoint healed: a name from `evocompress.distributed.EXECUTORS`.
        ray: How, with ``executor: ray``.
    """

    name: Name
    runs: Path = Path("runs")
    seed: Seed = 0
    threads: Cores | None = None
    executor: str = "local"
    ray: RayConfig = RayConfig()
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
