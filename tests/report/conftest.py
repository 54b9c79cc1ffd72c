from pathlib import Path

import pytest
from fabricate import run_folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run's folder; tests that change files make their own."""
    return run_folder(tmp_path_factory.mktemp("runs") / "run")
