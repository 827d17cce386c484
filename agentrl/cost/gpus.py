"""Kinds of GPU, as their makers describe them. To plan for another kind, add a line."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One GPU. The rates are those of the data sheet, without sparsity."""

    title: str
    memory: float  # GiB that programs can have, somewhat less than the name of the card says
    flops: float  # operations a second in bfloat16, of matrix products
    bandwidth: float  # bytes a second between memory and processor
    link: float  # bytes a second to the other GPUs of the machine, in each direction


GPUS = {
    "a10g": Gpu("A10G 24 GB", 22.1, 70e12, 600e9, 16e9),
    "a100-40gb": Gpu("A100 40 GB", 39.4, 312e12, 1555e9, 300e9),
    "a100": Gpu("A100 80 GB", 79.2, 312e12, 2039e9, 300e9),
    "l4": Gpu("L4 24 GB", 22.0, 121e12, 300e9, 16e9),
    "l40s": Gpu("L40S 48 GB", 44.4, 362e12, 864e9, 32e9),
    "rtx4090": Gpu("RTX 4090 24 GB", 23.5, 165e12, 1008e9, 32e9),
    "h100": Gpu("H100 80 GB", 79.2, 989e12, 3350e9, 450e9),
    "h200": Gpu("H200 141 GB", 139.8, 989e12, 4800e9, 450e9),
    "b200": Gpu("B200 180 GB", 178.4, 2250e12, 8000e9, 900e9),
}
NETWORK = 50e9  # bytes a second between machines for each GPU: 400 Gbit/s, as in machines built for training
