import pytest
from library_setting import Setting


@pytest.fixture
def setting():
    return Setting()
