"""Check what a run needs outside its own process: GPUs, the hub, servers. Each check takes seconds at most.

This module imports no torch, because the import takes longer than all checks together.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

from agentrl.config.algos.evaluate import Evaluate
from agentrl.config.judges import EmbeddingJudge, LocalJudge, OpenAIJudge
from agentrl.config.schema import Config
from agentrl.core.errors import UserError
from agentrl.endpoint.connection import behind_proxy, explain_no_connection
from agentrl.endpoint.waiting import call_within
from agentrl.models.hub import check_hub
from agentrl.runner.rendezvous import check_name

ANSWER_S = 5.0  # for an answer over the connection


def check_reach(config: Config) -> list[str]:
    """Raise a UserError of one line for what cannot be reached; return warnings about what may not be needed."""
    endpoint = config.algo.endpoint.base_url if isinstance(config.algo, Evaluate) else None
    if endpoint is not None:
        check_server("algo.endpoint.base_url", endpoint)
    elif config.hardware.device == "cuda":
        _check_gpus(config)
    if config.hardware.nodes > 1 and not config.hardware.submits:
        check_name(config.hardware)
    for key, repository, kind, revision in _of_the_hub(config, endpoint is not None):
        check_hub(key, repository, kind, revision)
    judge = config.judge
    if isinstance(judge, EmbeddingJudge) and not Path(judge.path).expanduser().exists():
        check_hub("judge.path", judge.path, "model", None, instead="run make minilm and set judge.path=models/minilm")
    return _judge(config)


def check_server(key: str, address: str) -> None:
    """Raise UserError if no server answers at an address. Behind a proxy this cannot be checked."""
    if (reason := _explain_no_answer(address)) is not None:
        raise UserError(f"{key}={address}: no server answers there ({reason}); start it, or correct the address")


def driver_gpus() -> int | None:
    """Return how many GPUs the driver shows to this process (CUDA_VISIBLE_DEVICES); None without NVIDIA's."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None if Path("/dev/kfd").exists() or Path("/dev/dxg").exists() else 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def _check_gpus(config: Config) -> None:
    hardware = config.hardware
    if importlib.metadata.version("torch").endswith("+cpu"):
        raise UserError(
            f"hardware={hardware.name} needs a GPU, but the installed PyTorch is a build without CUDA; install one "
            "with CUDA, or set hardware=cpu"
        )
    found = driver_gpus()
    if found is not None and found < hardware.processes_here:
        raise UserError(
            f"hardware={hardware.name} needs {hardware.processes_here} GPU(s), but the driver shows {found}; check "
            "nvidia-smi and CUDA_VISIBLE_DEVICES, lower hardware.processes, or set hardware=cpu"
        )


def _of_the_hub(config: Config, remote: bool) -> Iterator[tuple[str, str, str, str | None]]:
    """Yield key, repository, kind and revision of everything that is loaded from the hub."""
    model = config.model
    if not remote and not model.path.startswith("builtin:"):
        adapter = Path(model.path).expanduser() / "adapter_config.json"
        if not Path(model.path).expanduser().exists():
            yield "model.path", model.path, "model", model.revision
        elif adapter.is_file() and (base := _base_of(adapter)) is not None:
            yield f"model.path={model.path}: its base", base, "model", model.revision
    if getattr(config.bench, "hub_id", None) and config.bench.path is None:
        yield "bench.hub_id", config.bench.hub_id, "dataset", None
    judge = config.judge
    if isinstance(judge, LocalJudge) and not (
        judge.path.startswith("builtin:") or Path(judge.path).expanduser().exists()
    ):
        yield "judge.path", judge.path, "model", judge.revision


def _base_of(adapter: Path) -> str | None:
    """Return the hub id of an adapter's base; None for a local base, or if loading it will report an error."""
    try:
        base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError):
        return None
    return str(base) if base and not Path(str(base)).exists() else None


def _judge(config: Config) -> list[str]:
    judge = config.judge
    if not isinstance(judge, OpenAIJudge) or (reason := _explain_no_answer(judge.base_url)) is None:
        return []
    verdicts = Path(judge.cache or Path(config.runs_dir) / "judge.sqlite").expanduser()
    if not verdicts.exists():
        raise UserError(
            f"judge.base_url={judge.base_url}: no server answers there ({reason}); start it, or correct the address"
        )
    return [f"judge.base_url={judge.base_url} does not answer ({reason}); only the verdicts in {verdicts} can be used"]


def _explain_no_answer(address: str) -> str | None:
    """Return why a server of the OpenAI kind gives no answer in time; None if it answers, even with a refusal."""
    if (reason := explain_no_connection(address)) is not None or behind_proxy(address):
        return reason

    def ask() -> None:
        # it answered in some way, or the client words the error better
        with suppress(OSError, HTTPException, ValueError):
            urllib.request.urlopen(f"{address.rstrip('/')}/models", timeout=2 * ANSWER_S).close()

    try:
        call_within(ANSWER_S, ask)
    except TimeoutError:
        return f"it accepts connections but gives no answer in {ANSWER_S:g} s"
    return None
