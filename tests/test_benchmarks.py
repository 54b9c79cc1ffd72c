"""Every benchmark runs on small sizes and writes the figures that are compared over time."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from evocompress.core.files import read_json
from evocompress.testing.engines import why_missing
from evocompress.testing.tiny import tiny_loaded

FOLDER = Path(__file__).parent.parent / "benchmarks"
SHARED = {
    *("common", "cells", "heldout", "pictures", "texts", "permuted", "healing_choices"),
    *("contest", "contest_cells", "contest_front"),
    *("speed_setting", "speed_candidates", "speed_search", "speed_library"),
}
FIGURES = {
    "model_coverage": [
        *("types", "types_offered", "types_with_widths", "types_with_heads"),
        *("types_with_channels", "types_with_experts", "checks_passed", "checks_failed"),
    ],
    "compiled": [
        *("dense_ms", "dense_compiled_ms", "hf_ms", "hf_compiled_ms", "hf_vs_dense_compiled"),
        "max_difference",
    ],
    "beginning": ["with_ppl", "without_ppl", "tokenizer_adds"],
    "proxy": ["vs_forward", "vs_two_sided_kl", "peak_mib", "peak_mib_two_sided"],
    "prefix": ["single_drops_speedup", "nothing_common_speedup", "different"],
    "ray_scaling": [
        *("overhead_ms", "efficiency_64", "efficiency_64_staged", "driver_limit_per_second"),
        *("two_workers_speedup", "library_mib"),
    ],
    "speed": [
        *("vs_forward", "trie_efficiency", "evopress_workload", "depth_efficiency"),
        *("window_workload", "vs_published_recipe", "swap_ms_per_100", "cost_10k_ms"),
        *("overhead_fraction", "sweeps_vs_per_level", "library_vs_per_level"),
    ],
    "memory": [
        *("transformers_dense_mib", "transformers_all_predicted_mib", "memory_error"),
        "transformers_memory_error",
    ],
    "first_ask": ["genes", "random_s", "nsga2_s"],
    "search_overhead": ["genes", "swap_ms", "exchange_ms", "joint_ms", "candidate_ms", "hash_us"],
    "plan": ["plan_time_error", "plan_memory_error", "plan_disk_error"],
    "integrity": [
        *("verify_s_per_gb", "verify_sha256_s_per_gb", "from_disk_s_per_gb", "write_json_ms"),
    ],
    "journal": ["open_s", "peak_mib", "missing_ms", "resume_s"],
    "library": [
        *("vs_per_level_sweeps", "six_types_ratio", "max_relative_difference"),
        "bits_library_ratio",
    ],
    "latency_model": [
        *("median_abs_error", "shortest", "batch", "tokens", "spread"),
        *("decode_median_abs_error", "decode_shortest"),
    ],
    "search": [
        f"{case}_{key}"
        for case in ("sparsity50", "depth")
        for key in ("auto_kl_all_top256", "evopress_kl_sixth_top256", "evopress_computed")
    ],
    "bits": [
        *(f"{name}_kl_3.2" for name in ("uniform", "output_errors", "fisher", "curves")),
        *("auto_kl_3.2", "evopress_kl_3.2"),
        *(f"gain_over_best_additive_3.2{end}" for end in ("", "_low", "_high")),
    ],
    "joint": [
        f"{method}_{measure}_60"
        for method in ("joint", "bits_only", "uniform", "pruned_0.9", "sequential")
        for measure in ("kl", "healed_kl")
    ],
    "structured": [
        f"{table}kl_{method}_{budget}"
        for budget in ("085", "070", "055")
        for table in ("", "native_")
        for method in (
            *("uniform", "shortgpt", "sleb", "blockpruner", "flap", "multipruner", "search"),
        )
    ],
    "engines": [
        *("dense_mib", "compressed_mib"),
        *("transformers_dense_tokens_per_second", "transformers_compressed_tokens_per_second"),
    ],
    "digits": [
        *("dense_accuracy", "searched_accuracy", "healed_accuracy", "flops", "front_points"),
    ],
    "gguf_engine": [
        *("auto_mib", "mix_mib", "llama_cpp_mib", "llama_cpp_imatrix_mib", "dense_mib"),
        *("auto_kl", "mix_kl", "llama_cpp_kl", "llama_cpp_imatrix_kl", "auto_torch_kl"),
        *("file_bytes_error", "engine_kl_error", "engine_kl_allowed", "vs_default_mix_kl_ratio"),
        *("auto_prefill_tokens_per_second", "auto_generation_tokens_per_second"),
    ],
    "healing_cost": ["healing_s", "bare_s", "ratio", "ratio_low", "ratio_high"],
    "healing": [
        f"{setting}_{key}"
        for setting in ("widths", "zeros")
        for key in ("none_0_kl_three", "none_0_difference", "former_default_512_difference")
    ]
    + [f"bits_{choice}_512_difference" for choice in ("scales", "straight-through,_scales")],
    "proxy_validity": [f"{setting}_regret_plain" for setting in ("widths", "zeros")],
    "bottom_line": [
        *("ours_kl_80", "best_other_kl_80", "ours_ppl_three_80", "uniform_kl_80_sd", "flap_kl_80"),
        *("last_kl_80", "shortgpt_kl_80", "evopress_kl_80"),
    ],
    "claims": ["super_weight_kl", "last_all_kl", "shortgpt_last_3_head_kl", "repeated_4_kl"],
    "calibration": [f"{setting}_self_on_two_kl" for setting in ("widths", "zeros")],
    "refinements": [
        *("wanda_kl", "wanda+swaps_kl", "wanda+update_kl", "wanda+update_perplexity"),
        "wanda+bias_kl",
    ],
    "minilm": ["searched_spearman", "healed_spearman", "latency", "flops"],
    "real_weights": [
        *("gemma_body", "gemma_params", "gemma_searched", "gemma_even", "gemma_reloaded"),
        *("gemma_generated", "minilm_body", "minilm_searched", "minilm_even", "minilm_reloaded"),
    ],
    "embedding_proxy": [f"tau_{value}_2" for value in ("distance", "order", "both", "proxy")],
    "front": ["points", "hypervolume_search", "hypervolume_baselines", "ratio"],
    "sparsity50": [
        *("uniform_kl_top256", "kl_217k_top256", "kl_438k_top256", "kl_659k_top256"),
        *("uniform_kl", "kl_217k", "kl_438k", "kl_659k"),
        *("uniform_ppl", "dense_ppl"),
    ],
}


def test_every_script_is_tested():
    assert {path.stem for path in FOLDER.glob("*.py")} - SHARED == FIGURES.keys()


QUICK = ("first_ask", "journal", "proxy")
"""Which scripts `make test` runs; `make test-all` runs them all."""


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.long) for n in FIGURES]
)
def test_quick_run_prints_and_writes_the_figures(name, tmp_path):
    missing = why_missing("llama.cpp") if name == "gguf_engine" else None
    if missing is not None:
        pytest.skip(missing)
    file = tmp_path / "figures.json"
    command = [sys.executable, str(FOLDER / f"{name}.py"), "--quick", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    document = read_json(file)
    assert document.keys() == {"name", "machine", "versions", "figures"}
    assert document["name"] == name
    assert document["machine"]["cores"] and document["versions"]["torch"]
    for key in FIGURES[name]:
        assert math.isfinite(document["figures"][key])
    printed = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("│")]
    assert printed == list(document["figures"])


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma3_text"])
def test_channels_in_another_order_compute_the_same(model_type, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    from permuted import permute

    loaded, ids = tiny_loaded(model_type), torch.arange(1, 30)[None]
    model = loaded.model.double()
    before = model(ids).logits
    old = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    permute(loaded, torch.Generator().manual_seed(0))
    # Norms are computed in float32.
    torch.testing.assert_close(model(ids).logits, before, rtol=1e-4, atol=1e-5)
    same = [name for name, tensor in model.state_dict().items() if torch.equal(tensor, old[name])]
    assert all("norm" in name for name in same)
    columns = model.state_dict()["model.layers.1.mlp.down_proj.weight"][0]
    was = old["model.layers.1.mlp.down_proj.weight"]
    assert not any(torch.equal(columns, row) for row in was)
    assert any(torch.equal(columns.sort().values, row.sort().values) for row in was)


def test_seeds_of_several_machines_are_joined(tmp_path):
    methods = {key.removesuffix("_085") for key in FIGURES["structured"] if key.endswith("_085")}
    files = []
    for seed, shift in enumerate((0.0, 1.0, 5.0)):
        figures = {"seeds": 1, "margin_085": 9.0}
        for kind in methods:
            for budget in ("085", "070", "055"):
                ours = kind.endswith("search")
                figures[f"{kind}_{budget}"] = shift * ours + 4
                figures[f"{kind.replace('kl_', 'params_')}_{budget}"] = 0.8
        files.append(tmp_path / f"{seed}.json")
        files[-1].write_text(json.dumps({"figures": figures}))
    out = tmp_path / "joined.json"
    script = str(FOLDER / "structured.py")
    command = [sys.executable, script, "--json", str(out), "--join", *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())["figures"]
    assert found["seeds"] == 3
    assert found["kl_search_070"] == 6
    assert found["sd_native_kl_search_070"] == pytest.approx(7**0.5)
    assert found["margin_085"] == found["native_margin_055"] == -2
    command[-3:] = [str(tmp_path / "none.json")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.stderr.strip().endswith("none.json: --join takes what --json wrote")
    command[-1:] = [str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("joined.json is of 3 seeds: join files of one seed each")


def test_files_take_turns(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    from texts import TURN, in_turn

    files = []
    for letter, turns in (("a", 3), ("b", 2)):
        files.append(str(tmp_path / letter))
        Path(files[-1]).write_text(letter * (TURN * turns + 5))
    found = in_turn(files, tmp_path / "out").read_text().split("\n")
    assert [(piece[0], len(piece)) for piece in found] == [("a", TURN), ("b", TURN)] * 2
