"""Check, within seconds and before anything is loaded, the packages and servers that a run needs.

This module imports no torch.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from agentrl.config.rules.machine import samples_with_vllm
from agentrl.config.schema import Config
from agentrl.core.errors import UserError
from agentrl.core.install import install_line

PATIENCE_S = 3.0  # for a server on this machine or in its network
SERVE = (
    'VLLM_SERVER_DEV_MODE=1 vllm serve {model} --weight-transfer-config \'{{"backend": "nccl"}}\' '
    "--logprobs-mode processed_logprobs --max-logprobs -1"
)


def check_ready(config: Config) -> None:
    """Raise a UserError of one line for a package or a server that the run would miss later."""
    hardware = config.hardware
    if samples_with_vllm(config):
        if find_spec("vllm") is None:
            raise UserError(
                f"hardware.vllm={hardware.vllm}: the package vllm is not installed; {install_line('vllm')}, or set "
                "hardware.vllm=off"
            )
        if hardware.vllm == "server":
            _check_vllm_server(config)
    if hardware.accelerate_config is not None and find_spec("deepspeed") is None:
        content = yaml.safe_load(Path(hardware.accelerate_config).expanduser().read_text(encoding="utf-8"))
        if str(content.get("distributed_type")).upper() == "DEEPSPEED":
            raise UserError(
                f"hardware.accelerate_config={hardware.accelerate_config}: the package deepspeed is not installed; "
                f"{install_line('deepspeed')}, or choose distributed_type: FSDP"
            )


def _check_vllm_server(config: Config) -> None:
    """Check the vLLM server. TRL would wait four minutes for it, and would find out later that it takes no weights."""
    url = config.hardware.vllm_url.rstrip("/")
    start = f"start it with: {SERVE.format(model=config.model.path)}"
    where = f"hardware.vllm_url={config.hardware.vllm_url}"
    _ask(f"{url}/health", f"{where}: no vLLM server answers there", f"{start}; or set hardware.vllm=colocate")
    query = f"{url}/server_info?config_format=json"
    settings = _ask(query, f"{where}: that server does not take part in training", start).get("vllm_config")
    if not isinstance(settings, dict) or settings.get("weight_transfer_config") is None:
        raise UserError(f"{where}: that server cannot take new weights; {start}")
    if settings.get("model_config", {}).get("logprobs_mode") != "processed_logprobs":
        raise UserError(
            f"{where}: that server gives log-probs before the temperature, which makes importance ratios wrong; {start}"
        )


def _ask(url: str, trouble: str, advice: str) -> dict[str, Any]:
    """Return the JSON object at `url`, empty for an empty reply; raise a UserError that says why there is none."""
    cause = "its answer is not vLLM's"
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as reply:
            text = reply.read()
        content = json.loads(text) if text.strip() else {}
        if isinstance(content, dict):
            return content
    except urllib.error.HTTPError as error:
        cause = f"HTTP {error.code} for {urllib.parse.urlsplit(url).path}"
    except (OSError, HTTPException, ValueError) as error:  # refused, unknown host, too slow, not HTTP, not JSON
        cause = str(getattr(error, "reason", error))
    raise UserError(f"{trouble} ({cause}); {advice}")
