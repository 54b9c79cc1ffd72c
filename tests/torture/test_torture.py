import json
import subprocess
import sys

import pytest

ROWS = {
    "bits of a file flipped",
    "run file or override mutated",
    "model broken",
    "text broken",
    "file size limited",
    "two processes",
}


@pytest.mark.torture
def test_a_minute_of_attacks(tmp_path):
    told = tmp_path / "table.json"
    command = [sys.executable, "-m", "tests.torture", "--minutes", "1", "--json", str(told)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-4000:]
    assert json.loads(told.read_text())["rows"].keys() >= ROWS
