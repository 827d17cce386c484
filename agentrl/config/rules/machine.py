"""Can this machine do it? What it cannot do is refused, never dropped: kernels, vLLM, accelerate's file, packages."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import yaml

from agentrl.config.algos import Hipo
from agentrl.config.checks import require
from agentrl.config.schema import Config, Hardware
from agentrl.core.errors import UserError
from agentrl.core.install import install_line

ON_A_CPU = ("NO", "MULTI_CPU")  # of accelerate's distributed_type; it drops all others there without a word


def check_machine(config: Config) -> list[str]:
    """What the chosen hardware and the installed packages cannot do; warnings. Raises UserError."""
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
        quantised_rule = "NF4 has kernels for CUDA alone; set algo.reference=copy, or hardware=gpu"
        require(config.hardware.device == "cuda", "algo.reference", algo.reference, quantised_rule)
        found = find_spec("bitsandbytes") is not None
        require(found, "algo.reference", algo.reference, "needs bitsandbytes: pip install bitsandbytes, or set copy")


def _kernels(config: Config) -> list[str]:
    """What the CPU has no kernels for is refused; what is slow there, or rounds updates away, warns."""
    hardware, model, warnings = config.hardware, config.model, []
    if hardware.device == "cpu":
        flash = model.attn_implementation != "flash_attention_2"
        flash_rule = "needs a GPU; set model.attn_implementation=sdpa, or hardware=gpu"
        require(flash, "model.attn_implementation", model.attn_implementation, flash_rule)
        require(model.dtype != "float16", "model.dtype", model.dtype, "has no CPU kernels; set model.dtype=float32")
        if hardware.bf16:
            warnings.append("hardware.bf16=true on a CPU is several times slower than float32 unless it has AMX")
    if model.dtype != "float32" and not model.lora.enabled and config.trainer.learning_rate < 1e-5:
        warnings.append(
            f"model.dtype={model.dtype}: updates of size {config.trainer.learning_rate:g} are lost to rounding; "
            "keep model.dtype=float32 (hardware.bf16 still computes in bfloat16), or train adapters (model/lora=on)"
        )
    return warnings


def samples_with_vllm(config: Config) -> bool:
    """Whether vLLM plays this run's rollouts; methods without rollouts of their own sample with transformers."""
    return config.hardware.vllm != "off" and config.algo.rollouts


def _vllm(config: Config) -> None:
    hardware, rollout = config.hardware, config.rollout
    gpu_rule = "vLLM rollouts need a GPU; set hardware.vllm=off, or hardware=gpu"
    require(hardware.device != "cpu", "hardware.vllm", hardware.vllm, gpu_rule)
    url_rule = "must be the address of a vLLM server, e.g. http://localhost:8000"
    address = hardware.vllm_url.startswith(("http://", "https://"))
    require(hardware.vllm == "colocate" or address, "hardware.vllm_url", hardware.vllm_url, url_rule)
    top_p_rule = (
        f"vLLM gives probabilities among the tokens kept, the trainer among all, so with hardware.vllm={hardware.vllm} "
        "every ratio of the two is biased; set rollout.top_p=1, or hardware.vllm=off"
    )
    biased = samples_with_vllm(config) and rollout.top_p < 1
    require(not biased, "rollout.top_p", f"{rollout.top_p:g}", top_p_rule)
    turns_rule = (
        "TRL's client takes the replies of one process for another's once their episodes differ in length; set "
        "hardware.vllm=colocate, or hardware.processes=1"
    )
    shared = hardware.vllm == "server" and hardware.processes > 1 and rollout.max_turns > 1
    require(not shared, "hardware.vllm", hardware.vllm, turns_rule)


def _accelerate(hardware: Hardware) -> None:
    """The file says how weights are shared out; where and in how many processes, the keys of `hardware` say."""
    key, given = "hardware.accelerate_config", hardware.accelerate_config
    file = Path(str(given)).expanduser()
    require(file.is_file(), key, given, "no such file")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{key}={given}: cannot be read as YAML: {str(error).splitlines()[0]}") from error
    require(isinstance(content, dict), key, given, "holds no keys; make the file with `accelerate config`")
    kind = str(content.get("distributed_type", "NO")).upper()
    if hardware.device == "cpu":
        kind_rule = f"distributed_type={kind} needs GPUs, on a CPU accelerate drops it; set hardware=gpu or multi_gpu"
        require(kind in ON_A_CPU, key, given, kind_rule)
    else:
        cpu_rule = f"the file keeps the processes on the CPU, but hardware={hardware.name}; take use_cpu out of it"
        require(not content.get("use_cpu") and kind != "MULTI_CPU", key, given, cpu_rule)
    machines, processes = content.get("num_machines", 1), content.get("num_processes")
    machines_rule = f"num_machines={machines}: agentrl starts processes on one machine; set 1"
    require(machines in (1, None), key, given, machines_rule)
    count_rule = f"num_processes={processes} there; set hardware.processes={processes}, or take it out of the file"
    require(processes in (None, hardware.processes), key, given, count_rule)
