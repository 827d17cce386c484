"""Draws that depend on a text alone, and not on the state of a generator.

So they do not change with resuming, with the number of processes or with the order of a batch.
"""

from __future__ import annotations

import hashlib


def uniform(text: str) -> float:
    """Return a number in [0, 1) that is uniform over texts."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53  # 53 bits
