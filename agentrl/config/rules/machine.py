"""Can this machine do it? Checks kernels, vLLM, accelerate's file and packages. What is missing is an error."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from agentrl.config.accelerate_files import READY, SHARDED, accelerate_file, read_accelerate_file
from agentrl.config.algos.evaluate import Evaluate
from agentrl.config.algos.sides import Hipo
from agentrl.config.checks import require
from agentrl.config.hardware import Hardware, Slurm
from agentrl.config.networks import known_network
from agentrl.config.schema import Config
from agentrl.config.target import run_of
from agentrl.config.vllm import RANKS, network_of, samples_with_vllm, served_path
from agentrl.core.errors import UserError
from agentrl.core.gguf import converted_folder, is_gguf
from agentrl.core.install import install_line

CPUINFO = Path("/proc/cpuinfo")
ON_A_CPU = ("NO", "MULTI_CPU")  # accelerate's distributed_types for a CPU; it silently ignores all others there


def check_machine(config: Config) -> list[str]:
    """Raise UserError for what the hardware and the installed packages cannot do. Returns warnings."""
    if samples_with_vllm(config):
        _vllm(config)
    if config.algo.rollouts:
        _ahead(config)
    _nodes(config.hardware)
    if config.hardware.submits:
        _time(config.hardware.slurm)
    if config.hardware.accelerate_config is not None:
        _accelerate(config.hardware)
    _packages(config)
    _quantize(config)
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


def _quantize(config: Config) -> None:
    model, kind = config.model, config.model.quantize
    if kind is None:
        return
    key, served = "model.quantize", isinstance(config.algo, Evaluate) and config.algo.endpoint.base_url is not None
    require(not served, key, kind, "the server holds the weights; quantise them there, and set null")
    trained = config.algo.trains and not model.lora.enabled
    require(not trained, key, kind, "rounded weights cannot be trained; train adapters (model/lora=on), or set null")
    vllm_rule = "vLLM would sample from the weights before rounding; set vllm.mode=off, or null"
    require(not samples_with_vllm(config), key, kind, vllm_rule)
    package = "torchao" if kind == "int8" else "bitsandbytes"
    cuda_rule = "bitsandbytes computes on CUDA here; set model.quantize=int8, or hardware=gpu"
    require(kind == "int8" or config.hardware.device == "cuda", key, kind, cuda_rule)
    if find_spec(package) is None:
        raise UserError(f"{key}={kind}: the package {package} is not installed; {install_line(package)}, or set null")


def _kernels(config: Config) -> list[str]:
    """Refuse what the CPU has no kernels for. Warn about what is slow there, and about updates lost to rounding."""
    hardware, model, warnings = config.hardware, config.model, []
    if hardware.device == "cpu":
        flash = model.attn_implementation != "flash_attention_2"
        flash_rule = "needs a GPU; set model.attn_implementation=sdpa, or hardware=gpu"
        require(flash, "model.attn_implementation", model.attn_implementation, flash_rule)
        require(model.dtype != "float16", "model.dtype", model.dtype, "has no CPU kernels; set model.dtype=float32")
        if hardware.bf16 and not _computes_in_bf16():
            warnings.append(
                "hardware.bf16=true is slower than float32 on a processor without bfloat16 instructions "
                f"(AVX512-BF16, AMX), and {CPUINFO} names none; set hardware.bf16=false"
            )
    full = config.algo.trains and not model.lora.enabled
    if model.dtype != "float32" and full and config.trainer.learning_rate < 1e-5:
        warnings.append(
            f"model.dtype={model.dtype}: updates of size {config.trainer.learning_rate:g} are lost to rounding; "
            "keep model.dtype=float32 (hardware.bf16 still computes in bfloat16), or train adapters (model/lora=on)"
        )
    return warnings


def _computes_in_bf16() -> bool:
    """Return whether Linux says that the processor has instructions for bfloat16: of x86, or of ARM ('bf16')."""
    if not CPUINFO.exists():
        return False
    lines = [line.partition(":") for line in CPUINFO.read_text(encoding="utf-8").splitlines()]
    flags = {flag for name, _, values in lines if name.strip() in ("flags", "Features") for flag in values.split()}
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def _vllm(config: Config) -> None:
    hardware, vllm = config.hardware, config.vllm
    gpu_rule = "needs a GPU; start a server (vllm.mode=server), or set hardware=gpu"
    require(vllm.mode != "colocate" or hardware.device != "cpu", "vllm.mode", vllm.mode, gpu_rule)
    url_rule = "must be the address of a vLLM server without /v1, e.g. http://localhost:8000"
    address = vllm.url.startswith(("http://", "https://")) and not vllm.url.rstrip("/").endswith("/v1")
    require(vllm.mode == "colocate" or address, "vllm.url", vllm.url, url_rule)
    path = config.model.path
    if vllm.mode == "server" and is_gguf(path):
        make_rule = f"the server loads the checkpoint made from it; run: python -m agentrl.models.gguf {path}"
        require(converted_folder(Path(path)).is_dir(), "model.path", path, make_rule)
    if vllm.mode == "colocate":
        split_rule = f"must divide hardware.processes={hardware.processes}, among which vLLM is split"
        split = hardware.processes % vllm.tensor_parallel == 0
        require(split, "vllm.tensor_parallel", vllm.tensor_parallel, split_rule)
    folder = Path(path).expanduser()
    bare = (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()
    merging = f"run agentrl merge {run}" if (run := run_of(folder)) else "merge it (merge_and_unload of PEFT)"
    merge_rule = f"vLLM loads whole models, and this is an adapter; {merging}, and name what it writes"
    require(not samples_with_vllm(config) or not bare, "model.path", path, merge_rule)
    text_rule = (
        "vLLM would load its vision part too, and name the layers in another way than the trainer; save a copy of the "
        "text model (docs/vllm.md shows how) and name its folder"
    )
    require(not samples_with_vllm(config) or not _has_vision(config), "model.path", path, text_rule)
    network = known_network(config)
    heads = 0 if network is None else network.queries
    heads_rule = f"vLLM needs a divisor of the model's {heads} attention heads"
    require(heads % vllm.tensor_parallel == 0, "vllm.tensor_parallel", vllm.tensor_parallel, heads_rule)
    sleep_rule = "frees the memory of a GPU; set vllm.sleep=false, or hardware=gpu"
    require(not vllm.sleep or hardware.device != "cpu", "vllm.sleep", "true", sleep_rule)
    prompt = config.rollout.max_prompt_tokens
    room_rule = f"leaves no room behind a prompt of rollout.max_prompt_tokens={prompt}; raise it"
    require(vllm.context is None or vllm.context > prompt, "vllm.context", vllm.context, room_rule)
    rank, most = config.model.lora.r, RANKS[-1]
    rank_rule = f"vLLM takes adapters of rank {most} at most; lower it, or set vllm.mode=off"
    require(not config.model.lora.enabled or rank <= most, "model.lora.r", rank, rank_rule)


def _has_vision(config: Config) -> bool:
    """Whether the checkpoint is of a model whose text part transformers loads alone, and vLLM with the vision part."""
    content = network_of(served_path(config))
    if not content:  # of the hub
        return config.model.family == "qwen3.5"
    return content.get("model_type") in ("qwen3_5", "qwen3_5_moe")  # the text models are qwen3_5_text, ..._moe_text


def _ahead(config: Config) -> None:
    """Sampling ahead needs a sampler that works while this process trains."""
    alone = config.rollout.ahead == 0 or config.vllm.mode == "server"
    alone_rule = (
        "this process cannot sample while it trains; start a vLLM server (vllm.mode=server, docs/vllm.md), or set 0"
    )
    require(alone, "rollout.ahead", config.rollout.ahead, alone_rule)
    awake_rule = "with rollout.ahead=1 the server samples while this process trains; set vllm.sleep=false"
    require(config.rollout.ahead == 0 or not config.vllm.sleep, "vllm.sleep", "true", awake_rule)
    hint_rule = f"algo={config.algo.name} samples some prompts again after it has seen their rollouts; set 0"
    require(config.rollout.ahead == 0 or config.algo.longest_hint() == 0, "rollout.ahead", 1, hint_rule)


def _nodes(hardware: Hardware) -> None:
    """Check that this machine knows which one it is and where the others are."""
    nodes, rank = hardware.nodes, hardware.node_rank
    split_rule = f"must divide hardware.processes={hardware.processes}, which counts those of all machines"
    require(hardware.processes % nodes == 0, "hardware.nodes", nodes, split_rule)
    alone_rule = "hardware.nodes=1 machine has the number 0 alone; set hardware.nodes to their number, or null"
    require(nodes > 1 or not rank, "hardware.node_rank", rank, alone_rule)
    if hardware.submits or nodes == 1:
        return
    given = os.environ.get("SLURM_NODEID", "") if rank is None else str(rank)
    rank_rule = f"give each of the hardware.nodes={nodes} machines its number, from 0; only under SLURM it is known"
    require(given.isdigit() and int(given) < nodes, "hardware.node_rank", rank, rank_rule)
    meeting_rule = f"give all hardware.nodes={nodes} machines the same host:port: machine 0 and a free port of it"
    require(hardware.rendezvous is not None, "hardware.rendezvous", None, meeting_rule)


def _time(slurm: Slurm) -> None:
    """A job whose limit is not above the grace time would save and go back into the queue for ever."""
    grace_rule = f"the job would be told to save when it begins; keep it below the limit {slurm.time}"
    require(slurm.grace < slurm.limit_s, "hardware.slurm.grace", slurm.grace, grace_rule)


def _accelerate(hardware: Hardware) -> None:
    """Check accelerate's file. It may say how weights are distributed; the keys of `hardware` say the rest."""
    key, given = "hardware.accelerate_config", hardware.accelerate_config
    if (file := accelerate_file(given)) is None:
        return
    missing_rule = f"no such file; choose from {', '.join(READY)}, make a file with `accelerate config`, or set null"
    require(file.is_file(), key, given, missing_rule)
    try:
        content = read_accelerate_file(file)
    except UserError as error:
        raise UserError(f"{key}={error}") from error
    kind = str(content.get("distributed_type", "NO")).upper()
    if hardware.device == "cpu":
        kind_rule = f"distributed_type={kind} needs GPUs; set hardware=gpu or multi_gpu, or accelerate_config=null"
        require(kind in ON_A_CPU, key, given, kind_rule)
    else:
        cpu_rule = f"puts the processes on the CPU, but hardware={hardware.name}; remove use_cpu and MULTI_CPU from it"
        require(not content.get("use_cpu") and kind != "MULTI_CPU", key, given, cpu_rule)
        known = ("NO", "MULTI_GPU", *SHARDED)
        known_rule = f"distributed_type={kind}, but agentrl trains with one of {', '.join(known)} alone"
        require(kind in known, key, given, known_rule)
    alone_rule = f"distributed_type={kind} starts one process, not hardware.processes={hardware.processes}; set ddp"
    require(hardware.processes == 1 or kind not in ON_A_CPU, key, given, alone_rule)
    machines, processes = content.get("num_machines"), content.get("num_processes")
    machines_rule = f"has num_machines={machines}; set hardware.nodes={machines}, or remove it from the file"
    require(machines in (hardware.nodes, None), key, given, machines_rule)
    count_rule = f"has num_processes={processes}; set hardware.processes={processes}, or remove it from the file"
    require(processes in (None, hardware.processes), key, given, count_rule)
