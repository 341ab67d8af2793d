"""Before anything is imported: the Hub that tests see is a stand-in on loopback, with an empty cache of its own, and
each worker of pytest-xdist has cores of its own, which what it starts keeps to."""

import os
import tempfile

import pytest

from tests.hub_server import HubServer

if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    # else threads of one worker spin while they wait for those of another, and all take many times as long
    cores, num_workers = sorted(os.sched_getaffinity(0)), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    own = cores[int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw")) % len(cores) :: num_workers]
    os.sched_setaffinity(0, own)

SERVER = HubServer()
HOME = tempfile.TemporaryDirectory(prefix="eagleeye-tests-")  # removed when Python ends
os.environ |= {"HF_ENDPOINT": SERVER.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": HOME.name}
for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "TRANSFORMERS_OFFLINE"):
    os.environ.pop(name, None)

from eagleeye_hf.search import stages  # noqa: E402

stages.STEPS = (2, 4)
"""Leaders of searches are trained for a few steps only."""


@pytest.fixture
def hub() -> HubServer:
    """The stand-in for the Hub, empty."""
    SERVER.reset()
    return SERVER
