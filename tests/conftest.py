"""What every test needs: one thread, no network, and the shared data where it is there."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# Set before torch is imported: two processes with all cores each are many times slower than one thread each.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
os.environ["WANDB_MODE"] = "disabled"
os.environ["COLUMNS"] = "200"

from agentrl.sandbox import Sandbox
from tests.support.sandbox_calls import ADD, ADD_APART, TIMEOUT_S

# Both are ignored under nohup or in a script's background, and the processes that tests start would inherit that.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# The imports of the tests make a million objects that live as long as the process. Looking through them for garbage
# takes a third of the time of collecting the tests, and some of every test.
gc.disable()

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_finish() -> None:
    """Garbage is collected again, less often than usual, except what collecting the tests made."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    gc.enable()


@pytest.fixture
def shared() -> Path:
    """The directory with real benchmark data and golden verdicts; tests that need it skip without it."""
    path = Path(os.environ.get("AGENTRL_SHARED", ROOT.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"{path} does not exist; set AGENTRL_SHARED to the directory with the shared data")
    return path


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(timeout_s=TIMEOUT_S, memory_mb=256, output_chars=2000) as shared:
        yield shared


@pytest.fixture(autouse=True)
def next_call_works(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test that used the shared sandbox, an ordinary call succeeds."""
    yield
    if "sandbox" in request.fixturenames:
        shared: Sandbox = request.getfixturevalue("sandbox")
        for source in (ADD, ADD_APART):
            assert shared.call(source, "add", {"a": 2, "b": 3}).value == 5
