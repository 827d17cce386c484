"""The command and the environment of a worker, for one process, several and several machines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir

from agentrl.config.compose import CONF
from agentrl.config.load import typed_config
from agentrl.config.schema import Config
from agentrl.runner import launch
from agentrl.store.identity import run_path
from agentrl.store.run import RunDirectory
from tests.support.helpers import composed


@pytest.fixture
def config(tmp_path: Path) -> Config:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return typed_config(compose("config", overrides=[f"runs_dir={tmp_path}"]))


def test_command_and_environment(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory(tmp_path / "r")
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert launch.worker_command(run, config) == [sys.executable, "-m", "agentrl.runner.worker", str(run.path)]
    environment = launch.worker_environment(run, config)
    assert environment["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert "OMP_NUM_THREADS" not in environment  # all cores
    config.hardware.threads = 2
    assert launch.worker_environment(run, config)["OMP_NUM_THREADS"] == "2"
    config.hardware.processes = 2
    command: list[Any] = launch.worker_command(run, config)
    assert command[2] == "torch.distributed.run"
    assert "--nproc_per_node=2" in command
    assert command[-3:] == ["-m", "agentrl.runner.worker", str(run.path)]
    environment = launch.worker_environment(run, config)
    assert environment["ACCELERATE_USE_CPU"] == "true" and environment["DS_ACCELERATOR"] == "cpu"
    assert environment["MALLOC_MMAP_MAX_"] == "0" and environment["MALLOC_TRIM_THRESHOLD_"] == "17179869184"
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "9")
    assert launch.worker_environment(run, config)["MALLOC_MMAP_MAX_"] == "9"
    config.hardware.accelerate_config = "fsdp.yaml"
    command = launch.worker_command(run, config)
    assert command[2] == "accelerate.commands.launch"
    assert {"--num_processes=2", "--config_file=fsdp.yaml"} <= set(command)
    config.hardware.accelerate_config = "zero3"
    (file,) = [word.partition("=")[2] for word in launch.worker_command(run, config) if "--config_file" in word]
    assert yaml.safe_load(Path(file).read_text())["deepspeed_config"]["zero_stage"] == 3
    config.hardware.accelerate_config = "ddp"
    assert launch.worker_command(run, config)[2] == "torch.distributed.run"
    config.hardware.processes = 1
    assert launch.worker_command(run, config)[2] == "torch.distributed.run"
    config.hardware.accelerate_config = "fsdp.yaml"  # DeepSpeed offloads on a single GPU too
    assert {"--num_processes=1", "--config_file=fsdp.yaml"} <= set(launch.worker_command(run, config))


def test_each_machine_starts_its_own_processes(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, hardware = RunDirectory(tmp_path / "r"), config.hardware
    hardware.processes, hardware.nodes, hardware.node_rank, hardware.rendezvous = 4, 2, 1, "machine0:29500"
    command = set(launch.worker_command(run, config))
    assert {"--nproc_per_node=2", "--nnodes=2", "--node_rank=1"} <= command
    assert {"--master_addr=machine0", "--master_port=29500"} <= command
    hardware.accelerate_config = "fsdp2"
    command = set(launch.worker_command(run, config))
    assert {"--num_processes=4", "--num_machines=2", "--machine_rank=1", "--same_network"} <= command
    assert {"--main_process_ip=machine0", "--main_process_port=29500"} <= command
    hardware.processes, hardware.device = 2, "cuda"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert launch.worker_environment(run, config)["CUDA_VISIBLE_DEVICES"] == "3"  # one process here


def test_where_machines_meet_is_no_part_of_a_run(tmp_path: Path) -> None:
    given = ("hardware.processes=2", "hardware.nodes=2", "hardware.node_rank=0", "hardware.rendezvous=a:1")
    config = composed(f"runs_dir={tmp_path}", *given)
    run = RunDirectory.create(config)
    assert run is not None
    saved = run.config().hardware
    assert (saved.nodes, saved.node_rank, saved.rendezvous) == (2, None, None)
    assert run_path(composed(f"runs_dir={tmp_path}", "hardware.processes=2")) == run.path


def test_one_process_sees_one_gpu(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory(tmp_path / "r")
    config.hardware.device = "cuda"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert launch.worker_environment(run, config)["CUDA_VISIBLE_DEVICES"] == "0"
    for given, seen in (("3,5", "3"), ("GPU-8a,GPU-9b", "GPU-8a"), ("", "")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        assert launch.worker_environment(run, config)["CUDA_VISIBLE_DEVICES"] == seen
    assert launch.worker_environment(run, config, ["7"])["CUDA_VISIBLE_DEVICES"] == "7"
    config.hardware.processes = 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert launch.worker_environment(run, config)["CUDA_VISIBLE_DEVICES"] == "3,5"


LIBRARIES = ("vllm", "wandb", "trl", "datasets", "torch", "transformers", "accelerate", "agentrl", "rich", "yaml")


def test_a_folder_or_file_named_like_a_library_does_not_break_the_start(config: Config, tmp_path: Path) -> None:
    for name in LIBRARIES:
        (tmp_path / name).mkdir()
        if name != "vllm":  # a bare folder would be imported if a library is not installed
            (tmp_path / name / "__init__.py").write_text("raise SystemExit(f'{__file__} was imported')")
    (tmp_path / "json.py").write_text("raise SystemExit(f'{__file__} was imported')")
    run = RunDirectory(tmp_path / "r")
    looks = (
        "import runpy, sys, importlib.util as u, agentrl.store.run, yaml, json; "
        "sys.exit(u.find_spec('vllm') is not None or any(not p for p in sys.path))"
    )
    for processes in (1, 2):
        config.hardware.processes = processes
        [*interpreter, module, name, path] = launch.worker_command(run, config)
        assert (module, name, path) == ("-m", "agentrl.runner.worker", str(run.path))
        environment = launch.worker_environment(run, config)
        done = subprocess.run(
            [interpreter[0], "-c", looks], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")
