"""Sweeps: each job has its own process and directory, a job that fails does not stop others, and nothing is done
twice.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from agentrl.core.errors import UserError
from agentrl.report.arms import Arm, RunRecord, load_records
from agentrl.report.sweep import pareto_front, report_sweep, violation
from agentrl.report.sweep_live import job_table, progress
from agentrl.store.run import RunDirectory
from agentrl.store.sweeps import Job, Sweep, add_directory, digest
from tests.support.command_line import agentrl
from tests.support.helpers import composed

# The command line with a stand-in for the worker: it counts its starts; seed 3 is killed once, seed 5 fails.
DRIVER = """
import sys
import agentrl.commands.cli, agentrl.runner.launch
agentrl.runner.launch.worker_command = lambda run, config: [sys.executable, "-c", WORKER, str(run.path)]
WORKER = '''
import os, signal, sys
from agentrl.store.run import RunDirectory
run = RunDirectory(sys.argv[1])
seed, starts = run.config().seed, run.path.parent / f"{run.path.name}.starts"
with starts.open("a") as file: file.write("x")
print("worker of seed", seed, flush=True)
run.set_status("running", pid=os.getpid())
if seed == 3 and starts.stat().st_size == 1: os.kill(os.getpid(), signal.SIGKILL)
if seed == 5:
    run.set_status("failed", error="ValueError: poisoned")
    sys.exit(2)
value = run.config().algo.q + seed / 100
interval = {"mean": value, "lo": value - 0.1, "hi": value + 0.1, "n": 6}
run.append(run.metrics_path, {"step": 4, "reward": value})
run.write_json(run.summary_path, {"status": "completed", "algo": "pact", "model": "tiny", "bench": "minihop",
    "seed": seed, "steps": 4, "wall_s": 1.0, "tokens": {"seen": 1},
    "eval": {"before": {"solve_rate": interval}, "after": {"solve_rate": interval}}, "by": {}})
run.set_status("completed")
'''
agentrl.commands.cli.main()
"""


def sweep(where: Path, *arguments: str, driver: bool = True) -> subprocess.CompletedProcess[str]:
    program = ["-c", DRIVER] if driver else ["-m", "agentrl"]
    return subprocess.run(
        [sys.executable, *program, *arguments], cwd=where, capture_output=True, text=True, timeout=300
    )


def record(where: Path) -> dict[str, Any]:
    (path,) = where.glob("runs/sweeps/*/sweep.json")
    return dict(json.loads(path.read_text()))


def states(where: Path) -> dict[str, str]:
    """Return the state of each job, by the value that tells it from the others."""
    found = record(where)
    return {
        " ".join(text for text in job["overrides"] if text not in found["fixed"]): job["state"] for job in found["jobs"]
    }


def starts(where: Path) -> dict[int, int]:
    """Return how often the worker of each seed was started."""
    found = {}
    for path in where.glob("runs/*/*.starts"):
        seed = int(path.name.split("-")[0].removeprefix("s"))
        found[seed] = path.stat().st_size
    return dict(sorted(found.items()))


@pytest.mark.slow
def test_a_failed_job_and_a_killed_job_do_not_stop_the_others(tmp_path: Path) -> None:
    done = sweep(tmp_path, "-m", "seed=1,3,5,7")
    assert done.returncode == 137
    expected = {"seed=1": "completed", "seed=3": "failed", "seed=5": "failed", "seed=7": "completed"}
    assert states(tmp_path) == expected
    (first, second) = [line for line in done.stderr.splitlines() if line.startswith("agentrl: error: ")]
    assert "killed by signal 9" in first and "poisoned" in second
    assert "[4/4]" in done.stdout and "Traceback" not in done.stdout + done.stderr
    logs = [Path(job["log"]).read_text() for job in record(tmp_path)["jobs"]]
    assert all(f"worker of seed {seed}" in text for seed, text in zip((1, 3, 5, 7), logs, strict=True))
    again = sweep(tmp_path, "-m", "seed=1,3,5,7")
    assert again.returncode == 2  # seed 5 still fails
    assert starts(tmp_path) == {1: 1, 3: 2, 5: 2, 7: 1}
    assert states(tmp_path) == expected | {"seed=3": "completed"}


@pytest.mark.slow
def test_values_added_later_join_the_record(tmp_path: Path) -> None:
    assert sweep(tmp_path, "-m", "seed=0,1", "algo.q=0.4,0.6").returncode == 0
    done = sweep(tmp_path, "-m", "seed=0,1,2", "algo.q=0.4,0.6")
    assert done.returncode == 0
    assert len(states(tmp_path)) == 6 and set(states(tmp_path).values()) == {"completed"}
    assert starts(tmp_path).keys() == {0, 1, 2} and set(starts(tmp_path).values()) == {1}
    (folder,) = tmp_path.glob("runs/sweeps/*")
    # Seeds are pooled: 0.4 + the mean of 0, 0.01, 0.02; t(2) = 4.303 on the standard error 0.01 / sqrt(3).
    (row,) = [line for line in done.stdout.splitlines() if "q=0.4" in line and "[" in line and "seed" not in line]
    assert "0.410 [0.385, 0.435]" in row and "3" in row
    assert {path.name for path in folder.iterdir()} >= {"plots", "report.html", "report.md", "sweep.json"}
    assert (folder / "plots" / "solve_rate.png").stat().st_size > 1000
    assert record(tmp_path)["swept"] == ["seed", "algo.q"]
    assert len(load_records([folder])) == 6  # what `agentrl report` reads
    group = {RunDirectory(job["run"]).config().tracker.group for job in record(tmp_path)["jobs"]}
    assert group == {folder.name}


def test_a_choice_that_does_not_exist_is_refused_before_the_first_job(tmp_path: Path) -> None:
    done = agentrl(tmp_path, "-m", "algo=pact,pcat")
    assert done.returncode == 2
    assert done.stderr == "agentrl: error: algo=pcat is not a choice; did you mean pact?\n" and done.stdout == ""
    assert list(tmp_path.rglob("*.json")) == []  # Hydra has only written its multirun.yaml


def test_a_bad_value_is_refused_before_the_first_job(tmp_path: Path) -> None:
    done = agentrl(tmp_path, "-m", "algo.q=0.1,7", "dry_run=true")
    assert done.returncode == 2
    assert "algo.q=7: must lie in [0, 1]" in done.stderr and "1 of 2 jobs cannot work; none was started" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "plugin"),
    [
        (("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"), "hydra_joblib_launcher"),
        (("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"), "hydra_submitit_launcher"),
    ],
)
def test_other_launchers_run_a_sweep(tmp_path: Path, launcher: tuple[str, ...], plugin: str) -> None:
    if find_spec(f"hydra_plugins.{plugin}") is None:
        pytest.skip(f"{plugin} is not installed: pip install '.[sweepers]'")
    bad = sweep(tmp_path, "-m", "algo.q=0.1,7,0.2", "dry_run=true", *launcher, driver=False)
    assert bad.returncode == 2 and "1 of 3 jobs cannot work; none was started" in bad.stderr, bad.stdout + bad.stderr
    done = sweep(tmp_path, "-m", "algo.q=0.1,0.2", "dry_run=true", *launcher, driver=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert states(tmp_path) == {"algo.q=0.1": "dry_run", "algo.q=0.2": "dry_run"}
    assert len({job["pid"] for job in record(tmp_path)["jobs"]} - {os.getpid()}) >= 1


def test_a_search_gets_its_metric(tmp_path: Path) -> None:
    from agentrl.commands.cli import read_metric

    run = RunDirectory(tmp_path)
    run.write_json(run.summary_path, {"eval": {"after": {"solve_rate": {"mean": 0.25}}}, "algo": "pact"})
    config = composed()
    assert read_metric(config, run) is None
    config.sweep.metric = "eval.after.solve_rate.mean"
    assert read_metric(config, run) == 0.25
    for wrong in ("eval.after.reward.mean", "algo", "eval.after"):
        config.sweep.metric = wrong
        with pytest.raises(UserError, match=rf"sweep\.metric={wrong} is not a number"):
            read_metric(config, run)


# --- names and records --------------------------------------------------------------------------------------------


def name(*arguments: str) -> str:
    found = [text for text in add_directory(list(arguments)) if text.startswith("hydra.sweep.dir=")]
    return found[0].removeprefix("hydra.sweep.dir=${runs_dir}/sweeps/") if found else ""


def test_a_sweep_is_named_after_what_it_varies() -> None:
    assert name("algo=pact", "seed=1") == "" == name("--cfg", "job")
    first = name("-m", "seed=0,1", "algo=grpo,pact", "trainer.max_steps=4")
    assert first.startswith("seed+algo-")
    assert name("-m", "seed=0,1,2", "algo=pact,sft", "trainer.max_steps=4", "runs_dir=/x") == first
    assert name("-m", "seed=0,1", "algo=grpo,pact", "trainer.max_steps=5") != first
    assert name("sweep=seeds").startswith("seeds-")
    assert name("sweep=seeds", "seed=5,6") == name("sweep=seeds")
    assert name("sweep=seeds", "algo=grpo") != name("sweep=seeds")
    named = ["-m", "seed=0,1", "hydra.sweep.dir=mine"]
    assert add_directory(named) == named


def test_a_job_is_its_overrides_in_any_order() -> None:
    assert digest(["a=1", "b=2"]) == digest(["b=2", "runs_dir=/x", "a=1"]) != digest(["a=1", "b=3"])


@pytest.mark.parametrize(
    ("status", "state", "words"),
    [
        (None, "failed", "killed without a record"),
        ({"status": "running", "pid": 2**22 + 1}, "failed", "killed without a record"),
        ({"status": "running", "pid": os.getpid()}, "running", None),  # the job saves a checkpoint
        ({"status": "interrupted"}, "interrupted", "killed without a record"),
        ({"status": "failed", "error": "why"}, "failed", "why"),
        ({"status": "completed"}, "completed", None),
    ],
)
def test_the_record_is_right_about_a_killed_job(
    tmp_path: Path, status: dict[str, Any] | None, state: str, words: str | None
) -> None:
    book = Sweep(tmp_path / "sweep")
    job = book.start(["seed=1"], 0)
    assert [job.state for job in book.jobs()] == ["running"]
    job.pid, job.run = 2**22 + 1, str(tmp_path / "run")  # beyond the kernel's largest number
    book.note(job)
    if status is not None:
        (tmp_path / "run").mkdir()
        run = RunDirectory(tmp_path / "run")
        run.write_json(run.status_path, {"host": job.host, **status})
    (found,) = book.jobs()
    assert (found.state, found.error) == (state, words)
    if state == "running":  # the command itself ends now
        (closed,) = book.close()
        assert (closed.state, closed.code, closed.error) == ("interrupted", 130, None)


def test_the_live_table_shows_the_jobs(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for step in range(1, 2000):
        run.append(run.metrics_path, {"step": step, "reward": 0.5, "loss/total": 0.25})
    with run.metrics_path.open("a") as file:
        file.write('{"step": 2000, "torn')
    jobs = [Job(["seed=0", "x=[1,2]"], 0, "running", run=str(tmp_path), began=time.time())]
    jobs += [Job([f"seed={n}", "x=[1,2]"], n, "completed", began=time.time()) for n in range(1, 30)]
    jobs += [Job(["seed=30", "x=[1,2]"], 30, "failed", error="Traceback\nValueError: bad", began=time.time())]
    assert progress(jobs[0]) == "step 1999  reward 0.500  loss 0.250"
    assert progress(jobs[-1]) == "ValueError: bad"
    console = Console(width=120, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(job_table(jobs, "2 running"))
    text = console.export_text()
    assert "x=[1,2]" in text and "seed=30" in text and "ValueError: bad" in text and "step 1999" in text
    assert text.count("completed") == 18, "twenty rows at most"


# --- what comes out -----------------------------------------------------------------------------------------------


def test_pareto_keeps_the_points_that_no_other_beats() -> None:
    points = [(0.2, 0.9), (0.0, 0.5), (0.1, 0.4), (0.1, 0.7), (0.0, 0.3), (0.3, 0.9), (0.4, 0.95)]
    assert pareto_front(points) == [(0.0, 0.5), (0.1, 0.7), (0.2, 0.9), (0.4, 0.95)]
    assert pareto_front([]) == []


def two_sided(values: str, sys: float, by: dict[str, float]) -> Arm:
    """An arm with one run that has algo.constraints=`values`, and its evaluation."""

    def phases(mean: float) -> dict[str, Any]:
        cell = {"mean": mean, "lo": mean - 0.1, "hi": mean + 0.05, "n": 8}
        return {"after": {"r_sys": cell, "r_user": {**cell, "mean": 0.4}}}

    config = composed("algo=hipo", *([f"algo.constraints={values}"] if values else []), "algo.tau=0.99")
    settings = {"algo.constraints": [vars(one) for one in config.algo.constraints]}
    groups = {"kind": {kind: phases(mean) for kind, mean in by.items()}}
    return Arm((), "", [RunRecord(Path(), settings, {}, {"eval": phases(sys), "by": groups})])


def test_the_front_reads_the_thresholds_of_the_multipliers() -> None:
    hard = "[{name: hard, reward: sys, kind: conflict, threshold: 0.6, initial: 1},"
    easy = "{name: easy, reward: sys, kind: aligned, threshold: 0.9, initial: 1}]"
    found = violation(two_sided(hard + easy, 0.7, {"conflict": 0.55, "aligned": 0.7}))
    assert found is not None and (found.mean, found.lo, found.hi) == pytest.approx((0.2, 0.15, 0.3))
    user = "[{name: served, reward: user, kind: null, threshold: 0.5, initial: 1}]"
    assert violation(two_sided(user, 0.1, {})).mean == pytest.approx(0.1)
    assert violation(two_sided("[{name: a, reward: sys, kind: null, threshold: 0.6, initial: 1}]", 0.7, {})).mean == 0
    # the threshold of the default constraint is algo.tau
    assert violation(two_sided("", 0.9, {})).mean == pytest.approx(0.09)
    assert violation(two_sided("[]", 0.7, {})).mean == pytest.approx(0.3)
    assert violation(two_sided(hard[:-1] + "]", 0.7, {"aligned": 0.7})) is None  # nothing of that kind was evaluated


def test_two_sided_runs_draw_a_front(tmp_path: Path) -> None:
    """Two values of a key with two seeds each, written as if they had been run."""
    runs = []
    for q in (0.1, 0.4):
        for seed in (0, 1):
            run = RunDirectory.create(composed(f"runs_dir={tmp_path}", f"algo.q={q}", f"seed={seed}"))
            assert run is not None
            after = {
                metric: {"mean": value, "lo": value - 0.1, "hi": value + 0.1, "n": 8}
                for metric, value in (("r_user", 1 - q + seed / 50), ("r_sys", math.sqrt(q) - seed / 50))
            }
            names = {"status": "completed", "algo": "pact", "model": "tiny", "bench": "minihop", "seed": seed}
            run.write_json(
                run.summary_path,
                {**names, "steps": 4, "wall_s": 1.0, "tokens": {"seen": 1}, "eval": {"after": after}, "by": {}},
            )
            run.set_status("completed")
            runs.append(run.path)
    console = Console(width=160, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    (tmp_path / "sweep").mkdir()
    report_sweep(tmp_path / "sweep", runs, console)
    assert {path.name for path in (tmp_path / "sweep" / "plots").iterdir()} == {
        "r_user.png",
        "r_sys.png",
        "pareto.png",
    }
    assert console.export_text().count("q=0.") == 2


# --- the real thing -----------------------------------------------------------------------------------------------

TINY = (
    *("algo=sft", "trainer.max_steps=3", "trainer.prompts_per_batch=4", "trainer.minibatch_prompts=4"),
    *("bench.train_tasks=8", "bench.test_tasks=2", "eval.before=false", "hardware.threads=1"),
)


@pytest.mark.slow
def test_eight_real_jobs_with_one_that_fails_and_one_that_is_killed(tmp_path: Path) -> None:
    """A learning rate of 1e30 makes only its own run fail; the worker of another run is killed from outside."""
    swept = "trainer.learning_rate=1e-3,8e-4,6e-4,4e-4,2e-4,1e-4,5e-5,1e30"
    command = [sys.executable, "-m", "agentrl", "-m", *TINY, swept]
    if find_spec("hydra_plugins.hydra_joblib_launcher") is not None:
        command += ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    killed = ""
    while not killed and process.poll() is None:
        time.sleep(0.05)
        for path in tmp_path.glob("runs/*/[!.]*/status.json"):
            status = json.loads(path.read_text())
            if RunDirectory(path.parent).config().trainer.learning_rate == 6e-4 and status["status"] == "running":
                os.kill(status["pid"], signal.SIGKILL)
                killed = str(path.parent)
    out, err = process.communicate(timeout=500)
    assert process.returncode == 137, out + err
    jobs = record(tmp_path)["jobs"]
    failed = {job["run"]: job["error"] for job in jobs if job["state"] == "failed"}
    assert len(jobs) == 8 and sum(job["state"] == "completed" for job in jobs) == 6
    assert "killed by signal 9" in failed.pop(killed)
    ((poisoned, reason),) = failed.items()
    assert "is not finite" in reason and "faults.nonfinite" in reason
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/*/summary.json")}
    assert len(done) == 6
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert again.returncode == 2, again.stdout + again.stderr
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert {job["run"]: job["state"] for job in record(tmp_path)["jobs"]} == {
        job["run"]: "failed" if job["run"] == poisoned else "completed" for job in jobs
    }


def test_progress_says_of_how_many_updates_and_how_long(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.set_status("running", pid=os.getpid(), max_steps=30)
    for step in range(1, 13):
        run.append(run.metrics_path, {"step": step, "reward": 0.5})
        run.append(run.timing_path, {"step": step, "seconds": 99.0 if step == 1 else 10.0})
    job = Job(["seed=0"], 0, "running", str(tmp_path))
    assert progress(job) == "step 12/30  eta 3:00  reward 0.500"  # 18 updates of 10 s; the first one warmed up
    run.set_status("running", max_steps=1000)
    assert progress(job).startswith("step 12/1000  eta 2:44:40")
    run.set_status("interrupted", max_steps=30)
    assert progress(job) == "step 12/30  reward 0.500"
    run.set_status("running")  # the run still evaluates, or an older release started it
    assert progress(job) == "step 12  reward 0.500"
