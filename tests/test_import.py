"""The package itself is imported at once; what is heavy waits until it is used."""

import json
import subprocess
import sys

SECONDS = 0.5
HEAVY = {"torch", "transformers", "ray", "numpy"}
CODE = """
import sys, time
start = time.perf_counter()
import evocompress
seconds = time.perf_counter() - start
import json
print(json.dumps([seconds, sorted(sys.modules)]))
"""


def imported():
    """(seconds, modules that are loaded afterwards) of the import in a fresh process."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_import_is_quick_and_light():
    runs = [imported() for _ in range(3)]
    assert min(seconds for seconds, _ in runs) < SECONDS
    assert HEAVY.isdisjoint(runs[0][1])
