"""The time of a rollout batch, from operations, bytes and launches. All seconds are those of one GPU.

The constants marked "measured" come from two measurements on H100s (docs/performance.md, "On a GPU"); the others are
assumptions. Times of tools, judges, checkpoints and loading are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from agentrl.config.cache import cache_budget
from agentrl.config.networks import BYTES, Network
from agentrl.config.rules.batches import group_size
from agentrl.config.schema import Config
from agentrl.config.sequences import Lengths, Tree, count_tokens
from agentrl.config.vllm import samples_with_vllm, served_dtype
from agentrl.cost.gpus import NETWORK, Gpu
from agentrl.cost.memory import COLOCATED, GIB, SERVED, Shares, layer_bytes, vllm_cached_bytes, vllm_needs

PRODUCTS = 0.6  # share of the peak that large matrix products reach
ATTENTION = 0.124  # share of the peak that FlexAttention reached (measured)
MOVED = {"packed": 7.1, "compiled": 0.8}  # bytes that a pass moves for each that autograd saves uncompiled (measured)
LAUNCH = 1.25e-3  # seconds of a pass in which the GPU waits for the processor, for each layer (measured)
LAUNCH_ONE = 1.4e-3  # the same where a pass has one token of each episode (measured with stock TRL)
HOST = 3.5e-3  # seconds for an episode's rewards, masks and advantages, without tools and judges (measured)
READ = 0.8  # share of the memory bandwidth that decoding reaches
VLLM_STEP = 4e-3  # seconds of a decoding step of vLLM besides memory and operations: CUDA graphs, its scheduler
VLLM_ROWS = (256, 1024)  # episodes that vLLM decodes at once, at most: its defaults, the latter from the H100 on
STATES = 40.0  # bytes that an optimizer step moves for each parameter: weights, gradients, two moments, the norm
TAIL = 2.0  # the longest episode of a batch is this many times as long as the mean one


@dataclass(frozen=True)
class Batch:
    """Seconds of one rollout batch."""

    sampling: float
    scoring: float  # log-probs of the old policy and of the reference
    update: float  # forward and backward passes
    exchange: float  # gradients and weights between GPUs, and new weights to vLLM
    optimizer: float
    mfu: float  # operations on distinct tokens in forward and backward passes, over the peak

    @property
    def training(self) -> float:
        """Seconds in which nothing is sampled."""
        return self.scoring + self.update + self.exchange + self.optimizer


class Clock:
    """Estimates times for a run on GPUs of a kind. `mfu` replaces the estimated rate of the update, if it is known."""

    def __init__(self, config: Config, network: Network, gpu: Gpu, mfu: float | None = None) -> None:
        self.config, self.network, self.gpu, self.mfu = config, network, gpu, mfu
        self.packed = config.trainer.engine != "padded" and config.algo.packs
        self.processes = config.hardware.processes
        self.shares = Shares.of(config)
        spread = config.hardware.nodes > 1
        self.link = min(gpu.link, NETWORK) if spread else gpu.link

    def batch(self, lengths: Lengths) -> Batch:
        """Estimate a rollout batch: sampling, scoring, and all updates on it."""
        config, algo, trainer = self.config, self.config.algo, self.config.trainer
        updates = trainer.prompts_per_batch // trainer.minibatch_prompts
        prompts = trainer.minibatch_prompts / self.processes  # of an update, on each GPU
        rows = trainer.prompts_per_batch * group_size(config) / self.processes
        update = algo.update_trees(lengths)
        scored = algo.old_trees(lengths) if updates > 1 or samples_with_vllm(config) else []
        if algo.measures_reference():
            scored = [*scored, *algo.reference_trees(lengths)]
        pieces = self.pieces(update, prompts)
        seconds = updates * self.passes(update, prompts, backward=True)
        useful = updates * self.operations(update, prompts, backward=True)
        if self.mfu is not None and useful:
            seconds = useful / (self.mfu * self.gpu.flops)
        return Batch(
            sampling=self.sampling(rows, lengths) if algo.rollouts else 0.0,
            scoring=sum(updates * self.passes([tree], prompts, backward=False) for tree in scored)
            + (HOST * rows if algo.rollouts else 0.0),
            update=seconds,
            exchange=updates * self.exchange(pieces) + (self.handing_over() if algo.rollouts else 0.0),
            optimizer=updates * STATES * self.trained / self.shares.optimizer / self.gpu.bandwidth,
            mfu=useful / seconds / self.gpu.flops if seconds else 0.0,
        )

    @property
    def trained(self) -> float:
        """Parameters that are trained."""
        lora, algo = self.config.model.lora, self.config.algo
        if not algo.trains:
            return 0.0
        if lora.enabled or not algo.adapts:
            return self.network.adapter(lora.r, lora.target_modules)
        return self.network.parameters

    def pieces(self, trees: Sequence[Tree], prompts: float) -> int:
        """Passes into which `trainer.tokens_per_batch` cuts the trees of some prompts."""
        budget = self.config.trainer.tokens_per_batch
        tokens = prompts * count_tokens(trees, self.packed)
        context = max((tree.before + tree.context for tree in trees), default=0.0) if self.packed else 0.0
        least = max((tree.before + tree.context + tree.length for tree in trees), default=0.0)
        if tokens <= budget or not tokens:
            return 1
        # each further piece of a group computes its context again
        return math.ceil((tokens - context) / max(budget - context, least - context, 1.0))

    def operations(self, trees: Sequence[Tree], prompts: float, backward: bool, packed: bool = True) -> float:
        """Floating-point operations on the tokens of some prompts. What checkpointing computes again is not counted.

        Two for each weight and token, and four for each pair of tokens and each entry of the query heads.
        """
        body = 2 * self.network.body * count_tokens(trees, packed)
        head = 2 * self.network.table * sum(tree.scored_tokens for tree in trees)
        return prompts * (body + head + self._attention(trees, packed)) * ((1 + self._back) if backward else 1)

    @property
    def _back(self) -> float:
        """How many forward passes a backward pass costs: without the gradients of the weights, one."""
        return 1.0 if self.config.model.lora.enabled or not self.config.algo.adapts else 2.0

    def _attention(self, trees: Sequence[Tree], packed: bool) -> float:
        layers = self.network.layers if self.network.attention is None else self.network.attention
        return 4 * layers * self.network.queries * self.network.width * sum(tree.pairs(packed) for tree in trees)

    def passes(self, trees: Sequence[Tree], prompts: float, backward: bool) -> float:
        """Seconds of the passes over the trees of some prompts: kernels, and waiting for their launch."""
        if not trees:
            return 0.0
        network, gpu, count = self.network, self.gpu, self.pieces(trees, prompts)
        again = self.config.model.gradient_checkpointing and backward
        if self.packed:  # each cut through a group has its context computed once more
            trees = [replace(tree, repeats=1 + (count - 1) / max(prompts, 1)) for tree in trees]
        tokens = prompts * count_tokens(trees, self.packed)
        # Forward passes that cost the same: the backward pass, and the one that checkpointing repeats. TRL's head
        # computes its logits again in the backward pass.
        times = 1 + (self._back + again if backward else 0)
        head = 1 + (self._back + 1 if backward else 0)
        products = 2 * network.body * tokens * times
        products += 2 * network.table * prompts * sum(tree.scored_tokens for tree in trees) * head
        attention = prompts * self._attention(trees, self.packed) * times
        kind = "compiled" if self.config.trainer.engine == "compiled" else "packed"
        moved = MOVED[kind] * layer_bytes(self.config, network) * network.layers * tokens
        moved *= 1 + (2 + again if backward else 0)
        kernels = (products / PRODUCTS + attention / ATTENTION) / gpu.flops + moved / gpu.bandwidth
        return kernels + network.layers * count * LAUNCH * (1 + (1 + again if backward else 0))

    def exchange(self, pieces: int) -> float:
        """Seconds in which the GPUs exchange gradients, and weights that are shared out, in one update."""
        if self.processes == 1:
            return 0.0
        rest = (self.processes - 1) / self.processes
        gradients = 4 * self.trained * rest
        if self.shares.weights == 1:
            return 2 * gradients / self.link  # all-reduce
        # gathered for the forward and for the backward pass, in 16 bits
        weights = 2 * 2 * self.network.parameters * rest
        return pieces * (weights + gradients) / self.link

    def handing_over(self) -> float:
        """Seconds in which vLLM gets the new weights, once a rollout batch."""
        if not samples_with_vllm(self.config):
            return 0.0
        size = self.trained if self.config.model.lora.enabled else self.network.parameters
        way = NETWORK if self.config.vllm.mode == "server" else self.gpu.link
        return 4 * size / way

    def sampling(self, rows: float, lengths: Lengths, together: float = math.inf) -> float:
        """Seconds in which `rows` episodes of one process are sampled, at most `together` at a time."""
        if not rows:
            return 0.0
        config, network = self.config, self.network
        vllm, server = samples_with_vllm(config), config.vllm.mode == "server"
        split = config.vllm.tensor_parallel if vllm else 1
        served = (self.processes if server else split) if vllm else 1  # processes that share a vLLM
        rows, together = rows * served, together * served
        if vllm:
            together = min(together, VLLM_ROWS[self.gpu.bandwidth > 3e12])
        token = vllm_cached_bytes(config, network) if vllm else network.cached_bytes(served_dtype(config))
        held = lengths.prompt / lengths.rollouts + lengths.completion / 2
        at_once = max(min(rows, together, self._room() / held), 1.0)
        longest = min(TAIL * lengths.sampled, max(self.config.rollout.max_completion_tokens, lengths.sampled))
        steps = max(rows * lengths.sampled / at_once, longest)
        decoding = rows * lengths.sampled / steps  # episodes of a mean step
        weights = network.parameters * BYTES[served_dtype(config)]
        if not vllm and config.model.lora.enabled and config.hardware.bf16:
            weights = 4 * weights  # autocast reads frozen weights in float32 and copies them anew in each pass
        seen = (
            lengths.prompt / (1 if vllm else lengths.rollouts) + lengths.completion / 2
        )  # agentrl reads a prompt once
        reading = (weights + decoding * token * seen) / split / (READ * self.gpu.bandwidth)
        computing = 2 * network.parameters * decoding / split / (PRODUCTS * self.gpu.flops)
        fixed = VLLM_STEP if vllm else LAUNCH_ONE * network.layers
        gathered = 0.0
        if not vllm and self.shares.weights > 1:
            gathered = (
                2 * network.parameters * (1 - 1 / self.shares.weights) / self.link
            )  # of all weights, for each token
        unsampled = max(lengths.completion - lengths.sampled, 0.0)
        prompts = Tree(lengths.prompt / lengths.rollouts, 1, unsampled, 0.0)
        prefill = self._prefill([prompts], rows) / split
        return steps * max(reading + computing, fixed) + steps * gathered + prefill

    def _prefill(self, trees: Sequence[Tree], rows: float) -> float:
        operations = rows * (2 * self.network.body * count_tokens(trees, True) + self._attention(trees, True))
        return operations / (PRODUCTS * self.gpu.flops)

    def _room(self) -> float:
        """Tokens for whose keys and values there is room."""
        config, network = self.config, self.network
        if not samples_with_vllm(config):
            return float(cache_budget(config.rollout))
        share = config.vllm.memory or (SERVED if config.vllm.mode == "server" else COLOCATED)
        weights, _ = vllm_needs(config, network)
        free = share * self.gpu.memory * GIB - weights
        return max(free, 0.0) * config.vllm.tensor_parallel / vllm_cached_bytes(config, network)
