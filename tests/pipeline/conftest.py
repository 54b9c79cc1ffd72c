import shutil

import pytest
from run_files import EVOPRESS, write_run

from evocompress import api
from evocompress.core.config_file import dump_config, load_config
from evocompress.core.files import write_sealed
from evocompress.testing.tiny import tiny_checkpoint

SEARCH = EVOPRESS | {"generations": 8, "tokens": 3000}


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A finished run with a checkpoint, its model and its text."""
    home = tmp_path_factory.mktemp("home")
    tiny_checkpoint(home / "model")
    api.materialize(api.search(load_config(write_run(home, search=SEARCH))))
    return home


@pytest.fixture
def home(made, tmp_path):
    """A copy of all of it, which a test may change."""
    home = shutil.copytree(made, tmp_path / "home")
    config = dump_config(load_config(write_run(home, search=SEARCH)))
    write_sealed(home / "runs" / "trial" / "config.yaml", config)
    return home
