"""The command `agentrl`: it finds the command that is meant, or composes one configuration or a sweep, and starts it.

Only this module, config/compose.py and sweeps.py use Hydra. Nothing here imports torch, so that help, `--cfg job` and
completion answer at once.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import sys
import time
import traceback
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from agentrl.commands.sweep_jobs import Call, check_jobs
from agentrl.config.compose import compose_values, hydra_arguments, scaling_files, shorten_error, suggest_word
from agentrl.config.load import typed_config
from agentrl.config.schema import Config
from agentrl.config.shipped import CONF
from agentrl.config.typed import is_sweep, restore_typed_names
from agentrl.core.errors import UserError
from agentrl.core.signals import stop_signals
from agentrl.core.streams import keep_streams, lost_output, wrap_stream
from agentrl.core.version import __version__
from agentrl.runner.follow import adopt_submitted
from agentrl.runner.launch import INTERRUPTED, USER_ERROR
from agentrl.runner.start import make_paths_absolute, start
from agentrl.store import sweeps
from agentrl.store.identity import run_path
from agentrl.store.redact import mask_secrets, refuse_secrets
from agentrl.store.run import RunDirectory

# The commands. Each is a module with HELP and `main(arguments: list[str]) -> int`, imported when it is called.
COMMANDS: dict[str, str] = {
    "ls": "agentrl.commands.ls",
    "resume": "agentrl.commands.resume",
    "compare": "agentrl.commands.compare",
    "doctor": "agentrl.commands.doctor",
    "plan": "agentrl.commands.plan",
    "score": "agentrl.commands.score",
    "report": "agentrl.commands.report",
    "judge": "agentrl.commands.judge",
    "export": "agentrl.commands.export",
    "show": "agentrl.commands.show",
    "eval": "agentrl.commands.eval",
    "traces": "agentrl.commands.traces",
    "analyse": "agentrl.commands.analyse",
    "merge": "agentrl.commands.merge",
    "push": "agentrl.commands.push",
    "wandb": "agentrl.commands.wandb",
}

_exit_codes: list[int] = []  # exit codes of all jobs of this call; Hydra returns nothing
_typed: dict[str, str] = {}  # keys that the user gave under another name, for messages


def main() -> None:
    """Run the console script. It always ends in SystemExit."""
    keep_streams()
    for number in stop_signals():  # while no worker runs, a stop signal acts like Ctrl-C, and is recorded
        signal.signal(number, signal.default_int_handler)
    try:
        refuse_secrets(sys.argv[1:])  # before Hydra stores its arguments
        code = _command(sys.argv[1:])
    except UserError as error:
        _complain(error)
        code = USER_ERROR
    except KeyboardInterrupt:
        code = INTERRUPTED
    if cause := lost_output():
        _complain(UserError(f"standard output could not be written: {cause}; send it elsewhere"))
        if set(sys.argv[1:2]) & set(COMMANDS):  # a command's result is what it prints; a run's is its directory
            code = code or USER_ERROR
    sys.exit(code)


def _command(arguments: list[str]) -> int:
    """Run a command if the first argument is a bare word; everything else is a run described by overrides."""
    match arguments:
        case [word, *rest] if word in COMMANDS:
            command = importlib.import_module(COMMANDS[word])
            if {"-h", "--help"} & set(rest):
                print(command.HELP)
                return 0
            return int(command.main(rest))
        case [word, *_] if re.fullmatch(r"[a-z][a-z_-]*", word):
            raise UserError(
                f"unknown command '{word}'{suggest_word(word, COMMANDS)} (a run is described by key=value, see "
                "agentrl --help)"
            )
        case ["--version"]:  # otherwise Hydra prints its own version
            print(f"agentrl {__version__}")
            return 0
        case _ if {"-h", "--help"} & set(arguments):
            _help([argument for argument in arguments if argument not in ("-h", "--help")])
            return 0
        case _:
            return _train(arguments)


def _help(arguments: list[str]) -> None:
    """Print the help for everything, or for the keys of the groups that are given with --help."""
    from agentrl.config.help import help_all, help_text

    if arguments == ["all"]:
        print(help_all(CONF, COMMANDS))
        return
    chosen = [argument for argument in arguments if argument not in ("-m", "--multirun")]
    values = OmegaConf.to_container(compose_values(chosen), resolve=False)
    assert isinstance(values, dict)
    print(help_text(CONF, COMMANDS, {str(key): value for key, value in values.items()}, chosen))


def _train(arguments: list[str]) -> int:
    """Let Hydra compose one configuration, or those of a sweep, and call `_job` with each."""
    _exit_codes.clear()
    _typed.clear()
    if any(text.startswith("model=") for text in arguments) and not any("model.path=" in text for text in arguments):
        _typed["model.path"] = "model"
    wanted = os.environ.get("HYDRA_FULL_ERROR")
    full_error = wanted not in (None, "", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise its errors instead of printing pages
    try:
        arguments = hydra_arguments(arguments)
        sys.argv[1:] = sweeps.add_directory(arguments)
        call, begun = Call(_complain, _exit_codes), -1
        while begun < len(call.lost):  # again for the jobs of a sweep that are lost
            begun = len(call.lost)
            with ExitStack() as stack:
                sweeps.Announcement.hear = partial(check_jobs, call=call, stack=stack)
                hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(_job)()
    except (HydraException, OmegaConfBaseException) as error:
        if full_error:
            raise
        raise UserError(shorten_error(error)) from error
    except ValueError as error:  # Hydra raises this for conflicting flags
        if "Only one of --run" not in str(error):
            raise
        raise UserError("--cfg and -m exclude each other: --cfg shows one run's values; leave out -m") from error
    except OSError as error:  # the directory of a sweep; the code that makes a run's own directory checks it
        if error.filename is None or not is_sweep(arguments):  # e.g. a user's bench did not find its data
            raise
        raise UserError(f"cannot write {error.filename}: {error.strerror}; choose a writable runs_dir=...") from error
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        if wanted is not None:
            os.environ["HYDRA_FULL_ERROR"] = wanted
    return max(_exit_codes, default=0)


def _job(values: DictConfig) -> float | None:
    """Do one run, or one job of a sweep in the launcher's process. A search gets the job's metric."""
    keep_streams()  # a parallel launcher calls this in another process
    hydra_config = HydraConfig.get()
    if hydra_config.mode == RunMode.MULTIRUN:
        sweep = sweeps.Sweep(Path(hydra_config.sweep.dir))
        sweeps.begin_in_process(sweep)
        job = sweep.start(hydra_config.overrides.task, hydra_config.job.num)
        value = _run_job(values, sweep, job)
        if job.code == INTERRUPTED:
            raise KeyboardInterrupt  # also stops the rest of the sweep
        return value
    try:
        config = _read_config(values)
        refuse_secrets(config)  # e.g. key=${oc.env:HF_TOKEN}
        code = start(config)
    except UserError as error:
        _complain(error)
        code = USER_ERROR
    _exit_codes.append(code)
    return None


def _read_config(values: DictConfig) -> Config:
    """Return the typed values of the run that Hydra has composed, and the files that scaled them down."""
    config = typed_config(values)
    config.scaled_by = scaling_files(HydraConfig.get().runtime)
    return config


def _run_job(values: DictConfig, sweep: sweeps.Sweep, job: sweeps.Job) -> float | None:
    """Do one job of a sweep. An error ends only this job, and the job's record says so."""
    value = None
    try:
        config = _read_config(values)
        refuse_secrets(config)
        config.tracker.group = config.tracker.group or sweep.folder.name  # one group for the runs of a sweep
        make_paths_absolute(config)
        job.run = str(run_path(config))
        sweep.note(job)
        if config.hardware.submits and not config.dry_run and adopt_submitted(job):
            sweep.note(job)
            return None
        with Path(str(job.log)).open("a", encoding="utf-8") as output:
            job.code = start(config, wrap_stream(output), beside_others=True)
        status = RunDirectory(job.run).status()
        job.state, job.error, job.slurm = str(status["status"]), status.get("error"), status.get("slurm")
        if job.slurm is not None:  # follow_jobs waits for it
            job.state, job.code = "submitted", None
            sweep.note(job)
            return None
        if job.state == "completed":
            value = read_metric(config, RunDirectory(job.run))
    except UserError as error:
        job.state, job.code, job.error = "failed", USER_ERROR, str(error)
    except KeyboardInterrupt:  # a signal before its worker began
        job.state, job.code = "interrupted", INTERRUPTED
    except Exception:  # a fault of ours; the other jobs continue
        job.state, job.code, job.error = "failed", 1, traceback.format_exc()
    job.ended = time.time()
    sweep.note(job)
    return value


def read_metric(config: Config, run: RunDirectory) -> float | None:
    """Return the number of summary.json that `sweep.metric` names, None if it names none. Raise UserError for a name
    without a number.
    """
    if config.sweep.metric is None:
        return None
    found: Any = json.loads(run.summary_path.read_text(encoding="utf-8"))
    for part in config.sweep.metric.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise UserError(
            f"sweep.metric={config.sweep.metric} is not a number in {run.summary_path}; name one, e.g. "
            "eval.after.reward.mean"
        )
    return float(found)


def _complain(error: UserError) -> None:
    print(mask_secrets(f"agentrl: error: {restore_typed_names(str(error), _typed)}"), file=sys.stderr, flush=True)
