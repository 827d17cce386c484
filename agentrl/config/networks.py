"""The shapes of networks, from which their size and their cost follow. Known by hub id, or read from a config.json."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentrl.config.schema import Config
from agentrl.config.vllm import network_of, served_path

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
ATTENTION = ("full_attention", "sliding_attention", "attention")  # names of layers that keep keys and values


@dataclass(frozen=True)
class Network:
    """A transformer decoder: `layers` of attention and a gated MLP, between an embedding and an output layer."""

    layers: int
    hidden: int
    mlp: int
    queries: int  # query heads
    shared: int  # heads of keys and values
    width: int  # of a head
    vocabulary: int
    tied: bool  # embedding and output layer are one matrix
    attention: int | None = None  # layers that keep keys and values; None means all
    size: float | None = None  # parameters, if layers of another kind make the sum below wrong
    mixture: bool = False  # of experts; `mlp` is the width of those that a token goes through

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of the linear modules of a layer, by their usual names."""
        inner, outer = self.queries * self.width, self.shared * self.width
        return {
            "q_proj": (self.hidden, inner),
            "k_proj": (self.hidden, outer),
            "v_proj": (self.hidden, outer),
            "o_proj": (inner, self.hidden),
            "gate_proj": (self.hidden, self.mlp),
            "up_proj": (self.hidden, self.mlp),
            "down_proj": (self.mlp, self.hidden),
        }

    @property
    def table(self) -> int:
        """Weights of the output layer, and of the embedding."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> float:
        """All weights. Norms and biases are left out; they are less than 0.1%."""
        whole = self.layers * sum(rows * columns for rows, columns in self.matrices.values())
        return self.size or float(whole + self._tables)

    @property
    def body(self) -> float:
        """Weights of the layers, which every token is multiplied with."""
        return self.parameters - self._tables

    def cached_bytes(self, dtype: str) -> int:
        """Bytes of the keys and values of one token."""
        kept = self.layers if self.attention is None else self.attention
        return 2 * kept * self.shared * self.width * BYTES[dtype]

    def adapter(self, rank: int, modules: list[str] | str | None = None) -> int:
        """Parameters of LoRA adapters on some modules of each layer; on all of them, unless a list names others."""
        known = self.matrices
        chosen = [name for name in modules if name in known] if isinstance(modules, list) else list(known)
        return self.layers * rank * sum(sum(known[name]) for name in chosen or known)

    @property
    def _tables(self) -> int:
        return self.table * (1 if self.tied else 2)


# Shapes by hub id. Those of Qwen2.5, Qwen3, Llama, Phi and SmolLM2-135M are the checkpoints' own. Those of the other
# models were published elsewhere and not compared with their config.json.
KNOWN = {
    "Qwen/Qwen2.5-0.5B-Instruct": Network(24, 896, 4864, 14, 2, 64, 151936, True),
    "Qwen/Qwen2.5-1.5B-Instruct": Network(28, 1536, 8960, 12, 2, 128, 151936, True),
    "Qwen/Qwen2.5-3B-Instruct": Network(36, 2048, 11008, 16, 2, 128, 151936, True),
    "Qwen/Qwen2.5-7B-Instruct": Network(28, 3584, 18944, 28, 4, 128, 152064, False),
    "Qwen/Qwen3-0.6B": Network(28, 1024, 3072, 16, 8, 128, 151936, True),
    "Qwen/Qwen3-1.7B": Network(28, 2048, 6144, 16, 8, 128, 151936, True),
    "Qwen/Qwen3-4B": Network(36, 2560, 9728, 32, 8, 128, 151936, True),
    "Qwen/Qwen3-8B": Network(36, 4096, 12288, 32, 8, 128, 151936, False),
    "Qwen/Qwen3-14B": Network(40, 5120, 17408, 40, 8, 128, 151936, False),
    "Qwen/Qwen3-32B": Network(64, 5120, 25600, 64, 8, 128, 151936, False),
    # every fourth layer of Qwen3.5 has keys and values
    "Qwen/Qwen3.5-0.8B": Network(24, 1024, 3584, 8, 2, 256, 248320, True, attention=6, size=0.8e9),
    "Qwen/Qwen3.5-2B": Network(24, 2048, 6144, 8, 2, 256, 248320, True, attention=6, size=2.0e9),
    "Qwen/Qwen3.5-4B": Network(32, 2560, 9216, 16, 4, 256, 248320, True, attention=8, size=4.0e9),
    "HuggingFaceTB/SmolLM2-135M-Instruct": Network(30, 576, 1536, 9, 3, 64, 49152, True),
    "HuggingFaceTB/SmolLM2-360M-Instruct": Network(32, 960, 2560, 15, 5, 64, 49152, True),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": Network(24, 2048, 8192, 32, 32, 64, 49152, True),
    "google/gemma-3-270m-it": Network(18, 640, 2048, 4, 1, 256, 262144, True),
    # of the 16 layers, the others are convolutions
    "LiquidAI/LFM2-350M": Network(16, 1024, 4608, 16, 8, 64, 65536, True, attention=6, size=0.35e9),
    "microsoft/Phi-3-mini-128k-instruct": Network(32, 3072, 8192, 32, 32, 96, 32064, False),
    "microsoft/Phi-4-mini-instruct": Network(32, 3072, 8192, 24, 8, 128, 200064, True),
    "meta-llama/Llama-3.2-1B-Instruct": Network(16, 2048, 8192, 32, 8, 64, 128256, True),
    "meta-llama/Llama-3.2-3B-Instruct": Network(28, 3072, 8192, 24, 8, 128, 128256, True),
}


def known_network(config: Config) -> Network | None:
    """Return the shape of a run's network: by hub id, or from its directory. None if neither tells. Asks no hub."""
    path = served_path(config)
    for _ in range(8):  # an adapter may lie on another one
        if (found := KNOWN.get(path)) is not None:
            return found
        folder = Path(path).expanduser()
        if (found := read_network(network_of(path), count_local(folder))) is not None:
            return found
        path = base_of(folder) or ""
    return None


def read_network(content: Mapping[str, Any], size: float | None = None) -> Network | None:
    """Return the shape that a config.json describes; None if it describes none. `size`: its parameters, if known."""
    content = content.get("text_config", content)
    try:
        queries, hidden = int(content["num_attention_heads"]), int(content["hidden_size"])
        kinds = content.get("layer_types") or []
        experts = int(content.get("num_experts_per_tok") or 0)
        mlp = int((experts and content.get("moe_intermediate_size")) or content["intermediate_size"])
        return Network(
            layers=int(content["num_hidden_layers"]),
            hidden=hidden,
            mlp=mlp * (experts or 1),
            queries=queries,
            shared=int(content.get("num_key_value_heads") or queries),
            width=int(content.get("head_dim") or hidden // queries),
            vocabulary=int(content["vocab_size"]),
            tied=bool(content.get("tie_word_embeddings", True)),
            attention=sum(kind in ATTENTION for kind in kinds) if kinds else None,
            size=size,
            mixture=experts > 0,
        )
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError):
        return None  # a network of another kind, or a damaged file, which loading reports


def base_of(folder: Path) -> str | None:
    """Return the base that the adapter in a directory names; None if there is none, or if loading will report it."""
    try:
        content = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        return str(content["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def count_local(folder: Path) -> float | None:
    """Return the number of parameters in the safetensors files of a directory; None if there are none."""
    counts = [_count_elements(file) for file in folder.glob("*.safetensors")]
    known = [count for count in counts if count is not None]
    return float(sum(known)) if known else None


def _count_elements(file: Path) -> int | None:
    """Return the number of elements in a safetensors file, read from its header; None if the header is damaged."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(min(length, 100_000_000)))
        return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    except (struct.error, ValueError, KeyError, TypeError, AttributeError):  # loading the model reports it
        return None
