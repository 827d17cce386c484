"""The comparison of HIPO with its baselines: one number per run, intervals over seeds, the base before training."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from agentrl.benches import load_bench
from agentrl.benches.minihif_optimum import optimum
from tests.support.helpers import composed

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "compare_hipo.py"


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module(SCRIPT.stem)


def finished(folder: Path, r_sys: float, phases: tuple[str, ...] = ("after",)) -> None:
    results = {phase: {"r_sys": {"mean": r_sys}, "r_user": {"mean": 0.5}} for phase in phases}
    folder.mkdir(parents=True)
    summary = {"status": "completed", "eval": results, "by": {"kind": {"conflict": results, "aligned": results}}}
    (folder / "summary.json").write_text(json.dumps(summary))


def test_rows_are_means_over_the_seeds_that_finished(compare, tmp_path: Path):
    arm = next(iter(compare.ARMS))
    finished(compare.folder(tmp_path, arm, 0), 0.6, ("before", "after"))
    for seed, r_sys in enumerate((0.7, 0.8, 0.9)):
        finished(compare.folder(tmp_path, "hipo tau=0.8", seed), r_sys)
    header, _, base, first, hipo = compare.table(tmp_path, seeds=5)
    assert header.startswith("| method | seeds | r_sys all | r_user all |")
    assert base.startswith("| base | 1 | 0.600 [too few] |") and first.startswith(f"| {arm} | 1 | 0.600 [too few] |")
    # mean .8, standard error .1 / sqrt(3), Student's t of 2 degrees of freedom at 97.5%: 4.303
    # cut at 1, the largest reward; equal seeds do not show that all seeds would be equal
    assert hipo.startswith("| hipo tau=0.8 | 3 | 0.800 [0.552, 1.000] | 0.500 [too few] |")
    compare.plot(tmp_path, 5, tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")


def test_the_distance_to_the_optimum_of_the_test_prompts(compare, tmp_path: Path):
    config = composed("algo=hipo", "algo.tau=0.8", "bench.test_tasks=40")
    tasks = load_bench(config.bench).tasks("test")
    best = optimum(tasks, 0.8)
    finished(compare.folder(tmp_path, "hipo tau=0.8", 0), best.r_sys + 0.1)
    values = OmegaConf.to_yaml(OmegaConf.create(config.model_dump()))
    (compare.folder(tmp_path, "hipo tau=0.8", 0) / "config.yaml").write_text(values)
    *_, row = compare.distances(tmp_path, seeds=5)
    distance = (0.1**2 + (best.r_user - 0.5) ** 2) ** 0.5
    numbers = (best.r_sys + 0.1, 0.5, best.r_sys, best.r_user, best.multiplier, distance)
    assert row == "| hipo tau=0.8 | " + " | ".join(f"{number:.3f}" for number in numbers) + " |"
    assert best.r_sys == pytest.approx(0.8) or best.multiplier == 0
