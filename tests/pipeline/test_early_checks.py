"""What can be known is found before the model is loaded."""

from pathlib import Path

import pytest
import yaml
from run_files import TEXT

from evocompress import api
from evocompress.cli import commands
from evocompress.core.config_file import load_config
from evocompress.core.errors import (
    ConfigError,
    EvoCompressError,
    ExportError,
    LibraryError,
    ModelError,
)
from evocompress.core.files import make_folder
from evocompress.export import PROGRAMS, choose_for, programs, read_record
from evocompress.export.folder import whole_folder
from evocompress.pipeline import context
from evocompress.pipeline.checks import check_settings
from evocompress.pipeline.planning.forewarning import chosen_form
from evocompress.pipeline.planning.plan import context_of
from evocompress.pipeline.resolve import check_names, costs_named
from evocompress.pipeline.sweep import load_sweep
from evocompress.testing.tiny import tiny_checkpoint, tiny_loaded

RUN = {
    "threads": 1,
    "calibration": {
        "source": "text.txt",
        "library_sequences": 4,
        "search_sequences": 4,
        "heldout_sequences": 2,
        "length": 16,
    },
    "space": {"drop": {"protect": []}, "budget": {"body_params": 0.7}},
    "search": {"name": "uniform"},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def run_file(tmp_path, model, monkeypatch):
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "trial.yaml").write_text(yaml.safe_dump(RUN | {"model": {"source": str(model)}}))
    (tmp_path / "empty").mkdir()
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "model.gguf").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "trial.yaml"


@pytest.fixture
def unloaded(monkeypatch):
    def refuse(config):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(context, "load_as", refuse)


WRONG = [
    ("library.path=text.txt", "library.path: text.txt is a file"),
    ("calibration.source=empty", "calibration.source: the folder empty holds no .safetensors"),
    ("calibration.field=body", "calibration.field=body: text.txt has no fields"),
    ("runs=text.txt/x", "runs: no folder can be made in"),
    ("runs=/dev/null/x", "runs: no folder can be made in /dev/null"),
    ("runs=/proc/x", "runs: no folder can be made in /proc"),
    ("calibration.source=missing.txt", "calibration.source: missing.txt does not exist"),
    ("calibration.heldout_source=no.txt", "calibration.heldout_source: no.txt does not exist"),
    ("calibration.length=100000", "100000"),
    ("calibration.length=513", "takes at most 512"),
    ("space.budget={parms: 0.5}", "unknown cost 'parms'; did you mean 'params'"),
    ("space.budget={active_params: 0.5}", "active_params"),
    ("space.budget={params: 0.001}", "cannot be reached"),
    ("space.drop.protect=['*.nothing']", "matches no unit"),
    ("space.drop.units=[expert]", "no mixture of experts"),
    ("space={sparsity: {match: ['*.fc9'], target: 0.5}}", "matches no unit"),
    ("space={sparsity: {target: 0.6, pattern: '3:5'}}", "is no multiple of 5"),
    ("space={width: {multiple_of: 4096}}", "multiple_of"),
    ("space.fits=stocks", "did you mean 'stock'"),
    ("search={name: nsga2, objectives: [kv_bites]}", "did you mean 'kv_bytes'"),
    ("search={name: nsga2, range: {flop: [0.5, 0.9]}}", "did you mean 'flops'"),
    ("search={name: evopress, stage_tokens: [64, 4096], survivors: [2, 1]}", "4096"),
    ("evaluate.prefill=[1, 99999]", "99999"),
    ("proxy.kind=embedding", "embedding"),
    ("model.device=cuda:77", "no device"),
    ("search.tokens=63", "63 is less than the 64 that the first result of this search takes"),
    ("model.source=text.txt", "this is a file, and no .gguf one: give the model's folder"),
    ("model.source=packed", "given by its own name: packed/model.gguf"),
    ("threads=1024", "which is 4 for each of the"),
    ("space.budget={body_params: 1.0e-9}", "(1e-07% of dense) cannot be reached"),
    ("library.criterion=sparsgpt", "did you mean 'sparsegpt'"),
]


@pytest.mark.parametrize(("override", "message"), WRONG)
def test_a_wrong_setting_is_found_before_the_model_is_loaded(run_file, unloaded, override, message):
    with pytest.raises(EvoCompressError) as caught:
        api.search(load_config(run_file, [override]))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (run_file.parent / "runs").exists()


def test_the_threads_of_other_machines_are_not_compared_with_this_one(run_file, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    check_names(load_config(run_file, ["threads=8"]))
    with pytest.raises(
        ConfigError, match="threads: 9 is more than 8, which is 4 for each of the 2"
    ):
        check_names(load_config(run_file, ["threads=9"]))
    pytest.importorskip("ray")
    check_names(load_config(run_file, ["threads=9", "executor=ray"]))


def test_a_shipped_file_is_suggested_and_a_sweep_is_no_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("smollm2_sparsity_5", "search_spaces/smollm2_sparsty_50.yaml"):
        with pytest.raises(ConfigError, match="did you mean 'smollm2_sparsity_50'"):
            load_config(name)
    with pytest.raises(ConfigError, match="did you mean 'smollm2_sweep'"):
        load_sweep("smolm2_sweep")
    with pytest.raises(ConfigError, match=r"is a sweep: 'evocompress sweep .*smollm2_sweep.yaml'"):
        load_config("smollm2_sweep")
    with pytest.raises(ConfigError, match="no/run.yaml: no such configuration file"):
        load_config("no/run.yaml")


@pytest.mark.parametrize("source", ["datasets::", "datasets:", "datasets::en", "datasets:a:b:c:d"])
def test_a_data_set_has_a_name_and_at_most_three_parts(run_file, source):
    with pytest.raises(ConfigError, match="give .*datasets:NAME"):
        load_config(run_file, [f"calibration.source={source!r}"])


def test_a_folder_in_the_place_of_a_file_is_named_with_its_setting(run_file):
    with pytest.raises(LibraryError, match="library.path: the folder .* cannot be made"):
        make_folder(Path("text.txt"), "library.path", LibraryError)
    what = "out: the folder text.txt cannot be made"
    with pytest.raises(ExportError, match=what), whole_folder(Path("text.txt/x")):
        pass


def test_a_right_one_gets_as_far_as_the_model(run_file, unloaded):
    for work in (api.search, api.build_library):
        with pytest.raises(AssertionError, match="the model was loaded"):
            work(load_config(run_file))


def test_a_damaged_model_is_named_by_loading_it(run_file, tmp_path):
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "config.json").write_text("{")
    with pytest.raises(ModelError, match="config.json is damaged"):
        api.search(load_config(run_file, ["model.source=damaged"]))


def test_a_misspelt_section_gets_a_hint(tmp_path):
    (tmp_path / "run.yaml").write_text("model: {source: m}\nspce: {drop: {}}\n")
    with pytest.raises(ConfigError, match="unknown key 'spce': did you mean 'space'"):
        load_config(tmp_path / "run.yaml")
    (tmp_path / "sweep.yaml").write_text("run: {}\nvry: {seed: [0, 1]}\n")
    with pytest.raises(ConfigError, match="unknown key 'vry': did you mean 'vary'"):
        load_sweep(tmp_path / "sweep.yaml")


def test_later_stages_check_first_as_well_and_take_strings(run_file, monkeypatch):
    folder = api.search(load_config(str(run_file)))
    given = str(folder)
    assert api.materialize(given, out="smaller").name == "smaller"
    api.materialize(given)
    monkeypatch.setattr(context, "load_as", lambda config: pytest.fail("loaded"))
    for stage, change in [
        (api.evaluate, "calibration.source=gone.txt"),
        (api.evaluate, "evaluate.prefill=[1, 99999]"),
        (api.heal, "calibration.source=gone.txt"),
        (api.heal, "heal.source=gone.txt"),
    ]:
        with pytest.raises(EvoCompressError):
            stage(given, [change])
    monkeypatch.undo()
    monkeypatch.chdir(run_file.parent)
    assert api.evaluate(given, ["evaluate.latency=false"]).name == "evaluation.json"
    assert api.report(given).name == "report.html"


SPARSE_DROPS = {"width": {"multiple_of": 8}, "drop": {"protect": []}, "budget": {"params": 0.9}}


@pytest.fixture
def tried_versions(monkeypatch):
    monkeypatch.setattr(programs, "_installed", lambda packages: (packages[0], None))


@pytest.mark.parametrize("program", ["llama.cpp", "vllm"])
def test_a_program_is_chosen_before_the_search(run_file, program, tried_versions):
    pytest.importorskip("gguf")
    changes = [f"space={SPARSE_DROPS}".replace("'", '"'), f"space.fits={program}"]
    config = load_config(run_file, changes)
    context = context_of(config, tiny_loaded("llama"))
    assert context.form == {"llama.cpp": "gguf", "vllm": "folded"}[program]
    genes = context.space.encoding
    for gene, unit in enumerate(genes.units):
        for level in range(len(genes.levels[gene])):
            genome = genes.default.copy()
            genome[gene] = level
            choice = choose_for(context.loaded, genes.candidate(genome), program)
            assert choice.name in PROGRAMS[program].formats, unit.name
    (note,) = chosen_form(program, context.form)
    assert f"for {program}" in note and context.form in note


def test_the_format_for_a_program_holds_the_types_of_the_space(run_file, tried_versions):
    bits = {"bits": {"types": ["w4g32", "w3g32"]}, "fits": "vllm"}
    config = load_config(run_file, [f"space={bits}".replace("'", '"')])
    context = context_of(config, tiny_loaded("llama"))
    assert context.form == "compressed-tensors-vllm"
    assert {level.bits for levels in context.space.levels for level in levels} == {"w4g32"}
    with pytest.raises(ConfigError, match="vllm does not hold the types of space.bits as such"):
        load_config(run_file, ['space.bits={"types": ["q8_0"]}', "space.fits=vllm"])


def test_what_was_searched_for_a_program_is_written_for_it(run_file, monkeypatch, tried_versions):
    change = f"space={SPARSE_DROPS}".replace("'", '"')
    words = ["evocompress", "search", str(run_file), change, "name=for", "--for", "vllm"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as stop:
        commands.main()
    assert stop.value.code == 0
    written = api.materialize("runs/for", out="for-vllm")
    assert read_record(written).format in PROGRAMS["vllm"].formats
    assert "only candidates that format" in Path("runs/for/log.txt").read_text()


@pytest.mark.parametrize(
    ("fits", "name", "message"),
    [
        ("vlm", "llama", "did you mean 'vllm'"),
        ("llama.cpp", "gpt2", "gguf"),
        ("vllm", "bert-classifier", "only causal language models"),
    ],
)
def test_a_program_that_cannot_is_refused_before_the_search(
    run_file, tmp_path, unloaded, fits, name, message, tried_versions
):
    model = tiny_checkpoint(tmp_path / name, name)
    changes = [f"space.fits={fits}", f"model.source={model}", "space.budget={body_params: 0.7}"]
    with pytest.raises(EvoCompressError, match=message):
        api.search(load_config(run_file, changes))
    assert not (tmp_path / "runs").exists()


def test_an_old_program_and_a_foreign_format_are_refused_before_loading(run_file, monkeypatch):
    folder = api.search(load_config(run_file))
    monkeypatch.setattr(context, "load_as", lambda config: pytest.fail("loaded"))
    with pytest.raises(EvoCompressError, match="does not load format 'deci'"):
        api.materialize(folder, program="llama.cpp", form="deci")
    monkeypatch.setattr(programs, "_installed", lambda packages: (packages[0], "0.0.1"))
    with pytest.raises(EvoCompressError, match="is older than"):
        api.materialize(folder, program="vllm")
    with pytest.raises(EvoCompressError, match="is older than"):
        api.search(load_config(run_file, ["space.fits=vllm", "name=other"]))


@pytest.mark.parametrize(
    ("value", "named"), [(0.5, ()), ("all", ()), (["flops"], ("flops",)), ({"kl": [0, 1]}, ("kl",))]
)
def test_costs_are_read_of_settings_that_can_name_some(value, named):
    assert costs_named({"range": value}, "range") == named
    assert costs_named({}, "range") == ()


TYPED = '{"bits": {"types": ["w4g32", "w3g32"]}, "budget": {"bits_per_weight": 4}}'
PACKED = TYPED.replace("w4g32", "q8_0").replace("w3g32", "q4_0").replace("4}", "6}")
SPARSE = '{"sparsity": {"target": 0.5}}'
NARROW = '{"width": {"multiple_of": 8}, "budget": {"body_params": 0.7}}'


@pytest.mark.parametrize(
    ("space", "setting", "message"),
    [
        (TYPED, "rounding=nearest", "library.rounding=nearest to w4g32, w3g32 reads none: .*gptq"),
        (PACKED, "rounding=nearest", "library.rounding=nearest to q8_0, q4_0 reads none"),
        (SPARSE, "criterion=magnitude", "library.criterion=magnitude reads none: .*sparsegpt"),
        (NARROW, "width_criterion=magnitude", "library.width_criterion=magnitude reads none"),
    ],
)
def test_a_library_without_output_errors_is_refused_where_they_decide(
    run_file, space, setting, message
):
    def check(name, *more):
        changes = [f"space={space}", f"search={{name: {name}}}", *more]
        check_settings(context_of(load_config(run_file, changes), tiny_loaded("llama")))

    with pytest.raises(ConfigError, match=f"search.name=evopress_dp goes by .*{message}"):
        check("evopress_dp", f"library.{setting}")
    check("evopress_dp")
    check("uniform", f"library.{setting}")
