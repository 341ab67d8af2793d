"""Before anything is imported: the Hub that tests see is a stand-in on loopback, with an empty cache of its own."""

import os
import tempfile

import pytest

from tests.hub_server import HubServer

SERVER = HubServer()
HOME = tempfile.TemporaryDirectory(prefix="eagleeye-tests-")  # removed when Python ends
os.environ |= {"HF_ENDPOINT": SERVER.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": HOME.name}
for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "TRANSFORMERS_OFFLINE"):
    os.environ.pop(name, None)


@pytest.fixture
def hub() -> HubServer:
    """The stand-in for the Hub, empty."""
    SERVER.reset()
    return SERVER
