"""Check, within seconds and before anything is loaded, the packages and servers that a run needs.

This module imports no torch.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from agentrl.config.accelerate_files import distributed_type
from agentrl.config.algos.evaluate import Evaluate
from agentrl.config.schema import Config
from agentrl.config.vllm import samples_with_vllm, serve_command
from agentrl.core.errors import UserError
from agentrl.core.gguf import converted_folder, is_gguf, require_packages
from agentrl.core.install import install_line


def check_ready(config: Config) -> None:
    """Raise a UserError of one line for a package or a server that the run would miss later."""
    hardware, model = config.hardware, config.model.path
    remote = isinstance(config.algo, Evaluate) and config.algo.endpoint.base_url is not None
    if is_gguf(model) and not remote and not converted_folder(Path(model)).is_dir():
        require_packages(f"model.path={model}")
    if samples_with_vllm(config):
        if config.vllm.mode == "server":
            check_vllm_server(config)
        elif find_spec("vllm") is None:
            raise UserError(
                f"vllm.mode=colocate: the package vllm is not installed; {install_line('vllm')}, or set vllm.mode=off"
            )
    if find_spec("deepspeed") is None and distributed_type(hardware.accelerate_config) == "DEEPSPEED":
        raise UserError(
            f"hardware.accelerate_config={hardware.accelerate_config}: the package deepspeed is not installed; "
            f"{install_line('deepspeed')}, or set hardware.accelerate_config=fsdp2"
        )


def check_vllm_server(config: Config) -> None:
    """Raise UserError where the server of `vllm.url` is not one that this run can train with, or answers no more."""
    from agentrl.endpoint.vllm import VllmServer, VllmTrouble  # half a second that other runs need not wait
    from agentrl.endpoint.vllm_settings import check_settings, way_of_weights

    where, start = f"vllm.url={config.vllm.url}", f"start it with: {serve_command(config)}"
    trouble_with = "no vLLM server answers there"
    try:
        server = VllmServer(config.vllm.url)
        server.check_health()
        trouble_with = "that server does not take part in training"
        settings = server.settings()
        check_settings(settings, server.model()[1], config)
    except VllmTrouble as trouble:
        raise UserError(f"{where}: {trouble_with} ({trouble}); {start}; or set vllm.mode=off") from trouble
    if way_of_weights(settings, config) == "nccl" and find_spec("vllm") is None:
        raise UserError(
            f"{where}: that server takes weights over NCCL, for which the package vllm must be installed here too; "
            f"{install_line('vllm')}, or start it without --weight-transfer-config: then a file carries them"
        )
