"""BFCL's vector memory with our encoder and index in place of sentence-transformers and faiss.

`vector_memory.jsonl` holds operations and the results of the official code with sentence-transformers 6.2 and
faiss-cpu 1.15.1.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentrl.benches.bfcl.environment import BfclEnvironment, SimulatedApis
from agentrl.benches.bfcl.vector_search import IndexFlatIP, IndexIDMap, largest
from tests.support.bfcl_play import bench_of, needs_bfcl
from tests.support.minilm import minilm_path, small_encoder

PLAY = """
import importlib, json, sys
from agentrl.benches.bfcl.vector_search import stand_in
stand_in(sys.argv[1])
memory = importlib.import_module("bfcl_eval.eval_checker.multi_turn_eval.func_source_code.memory_vector")
store = memory.VectorStore(8, 300)
for line in open(sys.argv[2]):
    name, arguments, _ = json.loads(line)
    if name == "reload":
        saved, store = store.export(), memory.VectorStore(8, 300)
        store.load_from_snapshot(saved)
    print("RESULT", json.dumps(None if name == "reload" else getattr(store, name)(*arguments)))
"""


def texts_of(result: Any) -> Any:
    """What was found, without ids: of equal texts, rounding may choose another. Other results as they are."""
    return [found["text"] for found in result] if isinstance(result, list) else result


def scores_of(result: Any) -> list[float]:
    return [found["similarity_score"] for found in result] if isinstance(result, list) else []


@pytest.mark.slow
@needs_bfcl
def test_results_are_those_of_the_official_packages(tmp_path: Path) -> None:
    file = Path(__file__).with_name("vector_memory.jsonl")
    done = subprocess.run(
        [sys.executable, "-c", PLAY, str(minilm_path()), str(file)],
        env={**os.environ, "BFCL_PROJECT_ROOT": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    ours = [json.loads(line.removeprefix("RESULT ")) for line in done.stdout.splitlines() if line.startswith("RESULT")]
    official = [json.loads(line)[2] for line in file.read_text(encoding="utf-8").splitlines()]
    assert len(ours) == len(official) == 60
    for mine, theirs in zip(ours, official, strict=True):
        assert texts_of(mine) == texts_of(theirs)
        assert scores_of(mine) == pytest.approx(scores_of(theirs), abs=1e-6)


def test_equal_values_come_in_the_order_of_faiss() -> None:
    assert largest(np.array([1, 3, 2, 3], dtype=np.float32), 3) == [3, 1, 2]
    assert largest(np.array([1, 1, 1], dtype=np.float32), 2) == [1, 0], "an equal value replaces none"
    assert largest(np.array([1, 1, 2], dtype=np.float32), 2) == [2, 1], "of the lowest, the first is replaced"


def test_the_index_keeps_ids_with_their_vectors() -> None:
    index = IndexIDMap(IndexFlatIP(2))
    index.add_with_ids(np.array([[1, 0], [0, 1]], dtype=np.float32), np.array([7, 3]))
    index.add_with_ids(np.array([[0.6, 0.8]], dtype=np.float32), np.array([5]))
    found, ids = index.search(np.array([[1, 0]], dtype=np.float32), 2)
    assert ids.tolist() == [[7, 5]] and found[0].tolist() == pytest.approx([1, 0.6])
    index.remove_ids(np.array([7]))
    assert index.search(np.array([[1, 0]], dtype=np.float32), 2)[1].tolist() == [[5, 3]]
    index.reset()
    index.add_with_ids(np.array([[0, 1]], dtype=np.float32), np.array([0]))
    assert index.search(np.array([[1, 0]], dtype=np.float32), 1)[1].tolist() == [[0]]


@pytest.mark.slow
@needs_bfcl
def test_memory_is_searched_and_a_new_child_loads_the_encoder(tmp_path: Path) -> None:
    encoder = small_encoder(tmp_path / "encoder")
    bench = bench_of("bench.categories=[memory_vector]", "bench.memory=evidence", f"bench.encoder={encoder}")
    assert bench.usable_categories() == ("memory_vector",)
    task = bench.tasks("test", limit=1)[0]
    apis = SimulatedApis(bench.simulator, task.data["entry"].payload)
    environment = BfclEnvironment(task.data["entry"], apis)
    added = environment.call("core_memory_add", {"text": "a cat sits"}, 0)
    assert "id" in json.loads(added.observation)
    bench.simulator._stop()
    bench.simulator.timeout = 600.0  # the calls are played again, on a busy machine
    found = json.loads(environment.call("core_memory_retrieve", {"query": "a cat sits"}, 1).observation)
    assert found["result"][0]["text"] == "a cat sits"
    assert found["result"][0]["similarity_score"] == pytest.approx(1, abs=1e-5)


@needs_bfcl
def test_without_the_encoder_the_category_is_skipped_with_the_way_to_get_it(capsys: pytest.CaptureFixture[str]) -> None:
    bench = bench_of("bench.categories=[memory_kv,memory_vector]")  # tests run with HF_HUB_OFFLINE=1
    assert bench.usable_categories() == ("memory_kv",)
    said = capsys.readouterr().err
    assert "memory_vector is skipped: bench.encoder=sentence-transformers/all-MiniLM-L6-v2: not in the hub's" in said
    assert "run make minilm and set bench.encoder=models/minilm" in said


@pytest.mark.slow
@needs_bfcl
def test_the_real_encoder_finds_the_evidence() -> None:
    keys = ("bench.categories=[memory_vector]", "bench.memory=evidence", f"bench.encoder={minilm_path()}")
    bench = bench_of(*keys)
    entry = bench.tasks("test", limit=1)[0].data["entry"]
    environment = BfclEnvironment(entry, SimulatedApis(bench.simulator, entry.payload))
    found = json.loads(environment.call("archival_memory_retrieve", {"query": entry.source}, 0).observation)
    assert found["result"][0]["text"] == entry.source
    assert found["result"][0]["similarity_score"] == pytest.approx(1, abs=1e-5)
