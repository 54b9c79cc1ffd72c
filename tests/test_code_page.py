"""The page of the code: its table of rooms, and the way of a candidate, which a run is to take."""

import re
import sys
from pathlib import Path

from house import BELOW, PACKAGE

from evocompress import api
from evocompress.core import config_file
from evocompress.testing.tiny import tiny_checkpoint

TEXT = (PACKAGE / "README.md").read_text(encoding="utf-8")
LINK = r"\[([\w/.]+)\]\(\1\)"

RUN = """
model: {source: tiny}
calibration: {source: text.txt, length: 32, search_sequences: 12, heldout_sequences: 4}
library: {criterion: magnitude}
space: {sparsity: {target: 0.5, levels: 1}}
search: {name: evopress, generations: 1, offspring: 8}
"""


def test_the_table_has_every_room_and_what_it_imports():
    rows = re.findall(r"(?m)^\| `(\w+)` \| .+ \| (.+) \|$", TEXT)
    assert {room: below.replace(",", "").replace("nothing", "") for room, below in rows} == BELOW


def test_every_file_that_is_named_is_there():
    named = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert named and all((PACKAGE / path).exists() for path in named)


def test_a_run_passes_the_files_in_the_order_of_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_checkpoint(Path("tiny"))
    Path("text.txt").write_text(" ".join(str(number**2) for number in range(3000)))
    Path("run.yaml").write_text(RUN)
    told = [(str(PACKAGE / path), name) for path, name in re.findall(rf"{LINK}:\s+`(\w+)`", TEXT)]
    functions = [step for step in told if step[1].islower()]
    called = iter(calls(run, set(functions)))
    assert len(functions) > 15 and not [step for step in functions if step not in called]


def run():
    folder = api.search(config_file.load_config("run.yaml"))
    api.materialize(folder)
    api.heal(folder, ["heal.steps=1"])
    api.evaluate(folder, ["evaluate.latency=false"])
    api.report(folder)


def calls(function, watched):
    """Those of the watched (file, name) that a function calls, in order."""
    found = []

    def profile(frame, event, arg):
        step = (frame.f_code.co_filename, frame.f_code.co_name)
        if event == "call" and step in watched:
            found.append(step)

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return found
