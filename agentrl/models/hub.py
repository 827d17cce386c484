"""Can a model or a data set be had from the hub, or from its cache? This module imports no torch."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from contextlib import suppress
from functools import cache
from pathlib import Path

from agentrl.config.networks import Network, read_network
from agentrl.core.errors import UserError, first_line
from agentrl.endpoint.connection import PATIENCE_S, explain_no_connection

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


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


def check_hub(key: str, repository: str, kind: str, revision: str | None, instead: str | None = None) -> None:
    """Raise UserError if a repository is not in the cache and the hub refuses it; `instead` says what helps."""
    if is_in_hub_cache(repository, kind, revision):
        return
    named = f"{key}={repository}" if "=" not in key else f"{key} {repository}"
    advice = instead or "name a local directory" if kind == "model" else "name a local file as bench.path=..."
    if any(os.environ.get(name, "").lower() in ("1", "true", "yes", "on") for name in OFFLINE):
        raise UserError(
            f"{named}: not in the hub's cache, and {' or '.join(OFFLINE)} forbids a download; unset it, or {advice}"
        )
    print(f"Asking {hub_address()} for {repository}.", flush=True)
    if (reason := _hub_refusal(repository, kind)) is not None:
        raise UserError(f"{named}: not in the hub's cache, and {reason}; correct that, or {advice}")


def fetch_network(repository: str, revision: str | None) -> Network | None:
    """Return the shape of a network by its config.json, from the hub's cache or the hub; no weights are loaded.

    Raises:
        UserError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    check_hub("model.path", repository, "model", revision, instead="name a preset or a local directory")
    try:
        file = hf_hub_download(repository, "config.json", revision=revision)
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        size = None
        with suppress(OSError, HfHubHTTPError):  # from the cache alone, the size follows from the shape
            found = HfApi().model_info(repository, revision=revision, expand=["safetensors"]).safetensors
            size = None if found is None else float(found.total)
    except (OSError, ValueError) as error:
        raise UserError(f"model.path={repository}: its config.json cannot be had: {first_line(error)}") from error
    return read_network(content, size)


@cache
def _hub_refusal(repository: str, kind: str) -> str | None:
    """Return why the hub refuses a repository; None if it does not refuse, or if that is not certain."""
    if (silence := explain_no_connection(hub_address())) is not None:
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
