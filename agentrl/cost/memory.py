"""The memory of a training process, by phase and by part, in bytes. Nothing is loaded.

A phase is a time in which parts are in memory together: while the process samples it has no gradients, and while it
updates it has no cache of keys and values. Weights, gradients and optimizer are exact up to norms and biases. The
activations of a layer were counted: what autograd saves (tests/cost/test_memory.py counts it again).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from agentrl.config.accelerate_files import accelerate_file, distributed_type, read_accelerate_file
from agentrl.config.algos.evaluate import Evaluate
from agentrl.config.algos.sides import Hipo
from agentrl.config.cache import longest_episode, most_cached
from agentrl.config.networks import BYTES, Network
from agentrl.config.rules.batches import group_size
from agentrl.config.schema import Config
from agentrl.config.vllm import longest_context, samples_with_vllm, served_dtype

GIB = 2**30
RESERVE = 2 * GIB  # CUDA's context and kernels
VLLM_RESERVE = 3 * GIB  # what vLLM takes besides weights and cache: CUDA graphs, activations
COLOCATED = 0.3  # share of a GPU that vLLM takes beside the trainer, if vllm.memory is null (TRL's default)
SERVED = 0.9  # the same for a server (vLLM's default)
QUANTIZED = {"int8": 1.0, "8bit": 1.0, "4bit": 0.5}  # bytes of a weight
COMPILED = 0.5  # share of the bytes that autograd saves in a compiled layer (measured on an H100)
TILE = (4096, 32768)  # tokens and entries of the vocabulary whose logits TRL's head makes at once, on CUDA
CPU_TILE = (256, 32768)  # the same on a CPU (agentrl/scoring/head.py)
CPU_COPIES = 9  # of such a tile in float32, which TRL's code for CPUs holds at once
LIBRARIES = 0.65 * GIB  # of a process on a CPU: Python, torch, transformers (measured)
KV = "KV cache"

Parts = dict[str, float]


@dataclass
class Memory:
    """Bytes on one GPU, by phase and part."""

    phases: dict[str, Parts] = field(default_factory=dict)

    @property
    def peak(self) -> str:
        """Name of the phase that needs the most."""
        return max(self.phases, key=lambda phase: sum(self.phases[phase].values()))

    @property
    def most(self) -> float:
        """Bytes that the largest phase needs."""
        return sum(self.phases[self.peak].values())


@dataclass(frozen=True)
class Shares:
    """Into how many parts weights, gradients and optimizer are divided, and who divides them."""

    weights: int = 1
    gradients: int = 1
    optimizer: int = 1
    deepspeed: bool = False

    @classmethod
    def of(cls, config: Config) -> Shares:
        """Read `hardware.accelerate_config`. Offloading to the CPU is not counted."""
        processes, given = config.hardware.processes, config.hardware.accelerate_config
        kind, file = distributed_type(given), accelerate_file(given)
        if kind == "FSDP" and processes > 1:
            return cls(processes, processes, processes)
        if kind == "DEEPSPEED" and file is not None:
            stage = int((read_accelerate_file(file).get("deepspeed_config") or {}).get("zero_stage", 2))
            weights, gradients, optimizer = (processes if stage >= least else 1 for least in (3, 2, 1))
            return cls(weights, gradients, optimizer, deepspeed=True)
        return cls()


def estimate_memory(config: Config, network: Network, gpu_bytes: float | None = None) -> Memory:
    """Estimate the memory of one training process. `gpu_bytes` is the size of its GPU, of which vLLM takes a share."""
    model = _Model(config, network)
    found, shares = Memory(), model.shares
    vllm = _vllm_bytes(config, network, gpu_bytes) if config.vllm.mode == "colocate" and config.algo.rollouts else 0.0
    sampling = {
        "weights": model.weights / shares.weights,
        "optimizer": model.optimizer,
        "reference": model.reference,
        "bfloat16 copies": 0.0 if samples_with_vllm(config) or shares.weights > 1 else model.copies,
        KV: most_cached(config) * float(network.cached_bytes(served_dtype(config))),
        "vLLM": vllm,
    }
    remote = isinstance(config.algo, Evaluate) and config.algo.endpoint.base_url is not None
    if remote:
        return Memory({"sampling": {}})
    if not config.algo.trains:
        found.phases["sampling"] = {"weights": model.weights, "bfloat16 copies": model.copies, KV: sampling[KV]}
    else:
        found.phases["sampling"] = sampling
        found.phases["update"] = {
            "weights": model.weights / shares.weights,
            "gradients": model.gradients,
            "optimizer": model.optimizer,
            "reference": model.reference,
            "bfloat16 copies": model.saved_copies if shares.weights == 1 else 0.0,
            "gathered weights": model.gathered if shares.weights > 1 else 0.0,
            "activations": _activations(config, network),
            "logits": _logits(config, network, model.adapts),
            "vLLM": 0.0 if config.vllm.sleep else vllm,
        }
        if shares.weights > 1 and config.eval.before:  # nothing is sharded before training
            whole = {"weights": model.weights, "bfloat16 copies": model.copies, KV: sampling[KV], "vLLM": vllm}
            found.phases["evaluation before training"] = whole
    if config.hardware.device == "cuda":
        for parts in found.phases.values():
            parts["CUDA"] = RESERVE
    else:
        for parts in found.phases.values():
            parts["libraries"] = LIBRARIES
    for phase, parts in found.phases.items():
        found.phases[phase] = {name: size for name, size in parts.items() if size}
    return found


class _Model:
    """Bytes of the parts that do not depend on the phase."""

    def __init__(self, config: Config, network: Network) -> None:
        self.shares = shares = Shares.of(config)
        lora, model = config.model.lora, config.model
        self.adapts = config.algo.trains and (lora.enabled or not config.algo.adapts)
        cast = config.hardware.bf16 and model.dtype == "float32"
        # DeepSpeed computes in weights of 16 bits, and keeps those in float32 with the optimizer. Elsewhere autocast
        # copies the weights of the layers.
        halves = shares.deepspeed and cast
        size = 2.0 if halves else BYTES[model.dtype]
        body = QUANTIZED[model.quantize] if model.quantize else size
        self.weights = network.body * body + (network.parameters - network.body) * size
        self.copies = self.saved_copies = 0.0
        if cast and not halves and model.quantize is None:
            # Autocast keeps copies of trained weights alone, and autograd those of frozen ones that it reads again.
            kept = 2 * network.body
            self.copies = kept / network.layers if self.adapts else kept
            self.saved_copies = self.copies if model.gradient_checkpointing else kept
        self.gathered = 2 * 2 * network.body / network.layers + 4 * network.table  # two layers, and the output layer
        trained = network.adapter(lora.r, lora.target_modules) if self.adapts else network.parameters
        one = 4 if self.adapts else size
        buckets = 2 if config.hardware.processes > 1 and shares == Shares() else 1  # DDP sends copies of gradients
        self.gradients = self.optimizer = 0.0
        if config.algo.trains:
            self.gradients = buckets * one * trained / shares.gradients
            self.optimizer = (2 * one + (8 if halves else 0)) * trained / shares.optimizer
        # With adapters the reference is the same network with the adapters switched off.
        self.reference = 0.0
        if config.algo.trains and config.algo.measures_reference() and not self.adapts:
            small = isinstance(config.algo, Hipo) and config.algo.reference == "4bit"
            self.reference = (QUANTIZED["4bit"] if small else size) * network.parameters / shares.weights


def _vllm_bytes(config: Config, network: Network, gpu_bytes: float | None) -> float:
    """Bytes of vLLM on each GPU: its share, or where the GPU is not known what one episode needs."""
    if gpu_bytes is not None:
        return (config.vllm.memory or COLOCATED) * gpu_bytes
    return sum(vllm_needs(config, network))


def vllm_needs(config: Config, network: Network) -> tuple[float, float]:
    """Bytes that vLLM needs on each GPU at least: its weights and what is beside them, and one longest context."""
    split = config.vllm.tensor_parallel
    weights = network.parameters * BYTES[served_dtype(config)] / split + VLLM_RESERVE
    return weights, longest_context(config) * vllm_cached_bytes(config, network) / split


def vllm_cached_bytes(config: Config, network: Network) -> float:
    """Bytes of the keys and values of a token in vLLM."""
    return network.cached_bytes(served_dtype(config)) / (2 if config.vllm.kv_cache == "fp8" else 1)


def layer_bytes(config: Config, network: Network) -> float:
    """Bytes that autograd saves for a token in one layer: float32 norms, and 16 bits elsewhere with autocast."""
    queries, keys = network.queries * network.width, network.shared * network.width
    if config.hardware.bf16:
        return 26 * network.hidden + 10 * (queries + keys) + 8 * network.mlp
    return (6 * network.hidden + 4 * (queries + keys) + 4 * network.mlp) * BYTES[config.model.dtype]


def pass_tokens(config: Config) -> float:
    """Tokens of the largest forward pass of an update, at most."""
    longest, sequences = longest_episode(config.rollout), config.trainer.minibatch_prompts * group_size(config)
    share = max(sequences / config.hardware.processes, 1.0) * longest
    return min(max(float(config.trainer.tokens_per_batch), longest), share)


def _activations(config: Config, network: Network) -> float:
    """Inputs of all layers and one layer in full, with its gradients; without checkpointing all layers in full."""
    tokens, one = pass_tokens(config), layer_bytes(config, network)
    if config.trainer.engine == "compiled":
        one *= COMPILED
    if config.model.gradient_checkpointing:
        return tokens * (4 * network.hidden * network.layers + 2 * one)
    return tokens * one * (network.layers + 1)


def _logits(config: Config, network: Network, adapts: bool) -> float:
    """A tile of logits, the gradient of the output layer, and hidden states with theirs, in float32."""
    tokens = pass_tokens(config)
    if config.hardware.device == "cuda":
        tile = min(tokens, TILE[0]) * min(network.vocabulary, TILE[1]) * (2 if config.hardware.bf16 else 4)
    else:
        tile = CPU_COPIES * 4 * min(tokens, CPU_TILE[0]) * min(network.vocabulary, CPU_TILE[1])
    return tile + (0 if adapts else 4 * network.table) + 8 * tokens * network.hidden
