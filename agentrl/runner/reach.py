"""Check what a run needs outside its own process: GPUs, the hub, servers. Each check takes seconds at most.

This module imports no torch, because the import takes longer than all checks together.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from agentrl.config.algos import Evaluate
from agentrl.config.judges import LocalJudge, OpenAIJudge
from agentrl.config.schema import Config
from agentrl.core.errors import UserError
from agentrl.endpoint.waiting import call_within

PATIENCE_S = 3.0  # for looking up a name and opening a connection
ANSWER_S = 5.0  # for an answer over the connection
PORTS = {"http": 80, "https": 443}


def check_reach(config: Config) -> list[str]:
    """Raise a UserError of one line for what cannot be reached; return warnings about what may not be needed."""
    endpoint = config.algo.endpoint.base_url if isinstance(config.algo, Evaluate) else None
    if endpoint is not None:
        check_server("algo.endpoint.base_url", endpoint)
    elif config.hardware.device == "cuda":
        _check_gpus(config)
    for key, repository, kind, revision in _of_the_hub(config, endpoint is not None):
        _check_hub(key, repository, kind, revision)
    return _judge(config)


def check_server(key: str, address: str) -> None:
    """Raise UserError if no server answers at an address. Behind a proxy this cannot be checked."""
    if (reason := _explain_no_answer(address)) is not None:
        raise UserError(f"{key}={address}: no server answers there ({reason}); start it, or correct the address")


def is_reachable(address: str) -> bool:
    """Check whether something listens at the host and port of an address, or a proxy stands in between."""
    return _explain_no_connection(address) is None


def hub_address() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def is_in_hub_cache(repository: str, kind: str = "model", revision: str | None = None) -> bool:
    """Check whether a repository is in the hub's cache: a model by its configuration, a data set by any file."""
    from huggingface_hub import constants, try_to_load_from_cache

    try:
        for file in ("config.json", "adapter_config.json") if kind == "model" else ():
            if isinstance(try_to_load_from_cache(repository, file, revision=revision), str):
                return True
    except ValueError:  # not the name of a repository: loading it gives the hub's own message
        return False
    folder = Path(constants.HF_HUB_CACHE) / f"{kind}s--{repository.replace('/', '--')}" / "snapshots"
    return kind != "model" and folder.is_dir()


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


def _check_hub(key: str, repository: str, kind: str, revision: str | None) -> None:
    if is_in_hub_cache(repository, kind, revision):
        return
    named = f"{key}={repository}" if "=" not in key else f"{key} {repository}"
    advice = "name a local directory" if kind == "model" else "name a local file as bench.path=..."
    if any(os.environ.get(name, "").lower() in ("1", "true", "yes", "on") for name in OFFLINE):
        raise UserError(
            f"{named}: not in the hub's cache, and {' or '.join(OFFLINE)} forbids a download; unset it, or {advice}"
        )
    print(f"Asking {hub_address()} for {repository}.", flush=True)
    if (reason := _hub_refusal(repository, kind)) is not None:
        raise UserError(f"{named}: not in the hub's cache, and {reason}; correct that, or {advice}")


OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


@cache
def _hub_refusal(repository: str, kind: str) -> str | None:
    """Return why the hub refuses a repository; None if it does not refuse, or if that is not certain."""
    if (silence := _explain_no_connection(hub_address())) is not None:
        return f"{hub_address()} cannot be reached ({silence})"
    request = urllib.request.Request(f"{hub_address()}/api/{kind}s/{repository}")
    if token := _hub_token():
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S):
            return None
    except urllib.error.HTTPError as error:
        if error.code in (401, 403, 404):
            refusal = f"the hub has no {kind} of that name for you (HTTP {error.code})"
            return f"{refusal}: it is misspelt, or gated (set HF_TOKEN)"
    except OSError:  # a certificate that urllib does not know, or a slow answer: the hub's own library may succeed
        pass
    return None


def _hub_token() -> str | None:
    from huggingface_hub import get_token

    return get_token()


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
    if (reason := _explain_no_connection(address)) is not None or _behind_proxy(address):
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


def _behind_proxy(address: str) -> bool:
    parts = urlsplit(address)
    return parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(parts.hostname or "")


def _explain_no_connection(address: str) -> str | None:
    """Return why no connection opens to an address in time; None if one opens or a proxy stands in between."""
    parts = urlsplit(address)
    if _behind_proxy(address):
        return None
    try:
        port = parts.port or PORTS.get(parts.scheme, 80)
    except ValueError:
        return "the port is not a number"
    return _answer_within(PATIENCE_S, lambda: _connect(parts.hostname or "", port))


def _connect(host: str, port: int) -> str | None:
    try:
        socket.create_connection((host, port), timeout=PATIENCE_S).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _answer_within(seconds: float, question: Callable[[], str | None]) -> str | None:
    """Return what `question` returns, or that it took too long; a thread asks, because name look-ups have no
    timeout.
    """
    try:
        return call_within(seconds, question)
    except TimeoutError:
        return f"no answer in {seconds:g} s"
