"""Can this machine do it? Checks kernels, vLLM, accelerate's file and packages. What is missing is an error."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import yaml

from agentrl.config.algos import Hipo
from agentrl.config.checks import require
from agentrl.config.schema import Config, Hardware
from agentrl.core.errors import UserError
from agentrl.core.install import install_line

ON_A_CPU = ("NO", "MULTI_CPU")  # accelerate's distributed_types for a CPU; it silently ignores all others there


def check_machine(config: Config) -> list[str]:
    """Raise UserError for what the hardware and the installed packages cannot do. Returns warnings."""
    if config.hardware.vllm != "off":
        _vllm(config)
    if config.hardware.accelerate_config is not None:
        _accelerate(config.hardware)
    _packages(config)
    return _kernels(config)


def _packages(config: Config) -> None:
    tracker, algo = config.tracker.name, config.algo
    if tracker in ("trackio", "tensorboard") and find_spec(tracker) is None:
        raise UserError(f"tracker={tracker}: the package is not installed; {install_line(tracker)}, or tracker=none")
    if isinstance(algo, Hipo) and algo.reference == "4bit" and algo.kl_coef > 0:
        quantised_rule = "NF4 needs CUDA; set algo.reference=copy, or hardware=gpu"
        require(config.hardware.device == "cuda", "algo.reference", algo.reference, quantised_rule)
        found = find_spec("bitsandbytes") is not None
        require(found, "algo.reference", algo.reference, "needs bitsandbytes; pip install bitsandbytes, or set copy")


def _kernels(config: Config) -> list[str]:
    """Refuse what the CPU has no kernels for. Warn about what is slow there, and about updates lost to rounding."""
    hardware, model, warnings = config.hardware, config.model, []
    if hardware.device == "cpu":
        flash = model.attn_implementation != "flash_attention_2"
        flash_rule = "needs a GPU; set model.attn_implementation=sdpa, or hardware=gpu"
        require(flash, "model.attn_implementation", model.attn_implementation, flash_rule)
        require(model.dtype != "float16", "model.dtype", model.dtype, "has no CPU kernels; set model.dtype=float32")
        if hardware.bf16:
            warnings.append("hardware.bf16=true is several times slower than float32 on a CPU without AMX")
    if model.dtype != "float32" and not model.lora.enabled and config.trainer.learning_rate < 1e-5:
        warnings.append(
            f"model.dtype={model.dtype}: updates of size {config.trainer.learning_rate:g} are lost to rounding; "
            "keep model.dtype=float32 (hardware.bf16 still computes in bfloat16), or train adapters (model/lora=on)"
        )
    return warnings


def samples_with_vllm(config: Config) -> bool:
    """Whether vLLM samples the rollouts of this run. Methods without rollouts sample with transformers."""
    return config.hardware.vllm != "off" and config.algo.rollouts


def _vllm(config: Config) -> None:
    hardware, rollout = config.hardware, config.rollout
    gpu_rule = "vLLM rollouts need a GPU; set hardware.vllm=off, or hardware=gpu"
    require(hardware.device != "cpu", "hardware.vllm", hardware.vllm, gpu_rule)
    url_rule = "must be the address of a vLLM server, e.g. http://localhost:8000"
    address = hardware.vllm_url.startswith(("http://", "https://"))
    require(hardware.vllm == "colocate" or address, "hardware.vllm_url", hardware.vllm_url, url_rule)
    top_p_rule = (
        f"with hardware.vllm={hardware.vllm} all ratios would be biased: vLLM's probabilities are over the tokens of "
        "top_p, the trainer's over all tokens; set rollout.top_p=1, or hardware.vllm=off"
    )
    biased = samples_with_vllm(config) and rollout.top_p < 1
    require(not biased, "rollout.top_p", f"{rollout.top_p:g}", top_p_rule)
    turns_rule = (
        "TRL's client mixes up the replies of several processes when their episodes differ in length; set "
        "hardware.vllm=colocate, or hardware.processes=1"
    )
    shared = hardware.vllm == "server" and hardware.processes > 1 and rollout.max_turns > 1
    require(not shared, "hardware.vllm", hardware.vllm, turns_rule)


def _accelerate(hardware: Hardware) -> None:
    """Check accelerate's file. It may say how weights are distributed; the keys of `hardware` say the rest."""
    key, given = "hardware.accelerate_config", hardware.accelerate_config
    file = Path(str(given)).expanduser()
    require(file.is_file(), key, given, "no such file; make one with `accelerate config`, or set null")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{key}={given}: cannot be read as YAML: {str(error).splitlines()[0]}") from error
    require(isinstance(content, dict), key, given, "has no keys; make the file with `accelerate config`")
    kind = str(content.get("distributed_type", "NO")).upper()
    if hardware.device == "cpu":
        kind_rule = f"distributed_type={kind} needs GPUs; set hardware=gpu or multi_gpu, or change it in the file"
        require(kind in ON_A_CPU, key, given, kind_rule)
    else:
        cpu_rule = f"puts the processes on the CPU, but hardware={hardware.name}; remove use_cpu and MULTI_CPU from it"
        require(not content.get("use_cpu") and kind != "MULTI_CPU", key, given, cpu_rule)
    machines, processes = content.get("num_machines", 1), content.get("num_processes")
    machines_rule = f"num_machines={machines}, but agentrl starts processes on one machine; set 1"
    require(machines in (1, None), key, given, machines_rule)
    count_rule = f"has num_processes={processes}; set hardware.processes={processes}, or remove it from the file"
    require(processes in (None, hardware.processes), key, given, count_rule)
