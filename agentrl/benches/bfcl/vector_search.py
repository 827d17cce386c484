"""What the official vector memory imports, without the packages sentence-transformers and faiss.

The official module `memory_vector` makes a global encoder and keeps vectors in an exact index. `stand_in` puts two
small modules in place of these packages: our encoder, which gives the vectors of sentence-transformers, and inner
products in numpy. The official code runs unchanged on them. Only `worker.py` imports this file.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers.utils import logging

from agentrl.models.encoder import SentenceEncoder, Vectors

Ids = NDArray[np.int64]


class IndexFlatIP:
    """The inner products of vectors with `dimension` numbers. It only names the dimension; `IndexIDMap` searches."""

    def __init__(self, dimension: int):
        self.dimension = dimension


class IndexIDMap:
    """Vectors with ids, searched exactly."""

    def __init__(self, index: IndexFlatIP):
        self._dimension = index.dimension
        self.reset()

    def reset(self) -> None:
        self._vectors: Vectors = np.empty((0, self._dimension), dtype=np.float32)
        self._ids: Ids = np.empty(0, dtype=np.int64)

    def add_with_ids(self, vectors: Vectors, ids: Ids) -> None:
        self._vectors = np.concatenate([self._vectors, vectors])
        self._ids = np.concatenate([self._ids, ids])

    def remove_ids(self, ids: Ids) -> None:
        kept = ~np.isin(self._ids, ids)
        self._vectors, self._ids = self._vectors[kept], self._ids[kept]

    def search(self, queries: Vectors, count: int) -> tuple[Vectors, Ids]:
        """Return the largest products (Q, count) and their ids. The official code asks for no more than there are."""
        # One product at a time, so that equal texts have equal products.
        products = np.array([[np.dot(query, vector) for vector in self._vectors] for query in queries])
        best = np.array([largest(row, count) for row in products])
        return np.take_along_axis(products, best, axis=1), self._ids[best]


def largest(values: Vectors, count: int) -> list[int]:
    """Return the positions of the `count` largest of `values` (N,), the largest first, equal ones as faiss has them.

    faiss keeps a heap: a value replaces the lowest only if it is larger. Of equal values the last goes first.
    """
    kept: list[tuple[float, int]] = []
    for position, value in enumerate(values.tolist()):
        if len(kept) < count:
            kept.append((value, position))
        elif value > min(kept)[0]:
            kept.remove(min(kept))
            kept.append((value, position))
    return [position for _, position in sorted(kept, reverse=True)]


def stand_in(path: str) -> None:
    """Put the encoder at `path` and the index in place of the packages, for all later imports of this process.

    Raises:
        UserError: the encoder cannot be loaded.
    """
    logging.disable_progress_bar()
    encoder = SentenceEncoder(path, "bench.encoder")

    class SentenceTransformer:
        def __init__(self, name: str, device: str):
            """The official code names all-MiniLM-L6-v2 and the CPU."""

        def encode(self, texts: list[str], normalize_embeddings: bool) -> Vectors:
            return encoder.encode(texts)

        def get_sentence_embedding_dimension(self) -> int:
            return encoder.dimension

    contents: dict[str, dict[str, Any]] = {
        "sentence_transformers": {"SentenceTransformer": SentenceTransformer},
        "faiss": {"IndexFlatIP": IndexFlatIP, "IndexIDMap": IndexIDMap},
    }
    for name, content in contents.items():
        module = ModuleType(name)
        vars(module).update(content)
        sys.modules[name] = module
