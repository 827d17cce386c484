"""Start what a configuration describes: begin a run, resume it, or say that it is complete; without Hydra."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import TextIO

from rich.console import Console

from agentrl.config.algos.evaluate import Evaluate
from agentrl.config.algos.grpo import CustomAlgo
from agentrl.config.benches import Minihif, Minihop
from agentrl.config.places import paths_of
from agentrl.config.rules import validate
from agentrl.config.schema import Config
from agentrl.config.templates import template_names
from agentrl.core.console import make_console
from agentrl.core.errors import UserError
from agentrl.cost.estimate import estimate, print_estimate
from agentrl.evaluation.tasks import check_tasks
from agentrl.report.table import print_result
from agentrl.runner.gpus import reserve_gpus
from agentrl.runner.launch import COMPLETED, INTERRUPTED, launch
from agentrl.runner.reach import check_reach
from agentrl.runner.ready import check_ready
from agentrl.runner.rendezvous import WAIT_S
from agentrl.runner.slurm import submit, write_script
from agentrl.store.identity import MAY_MOVE, changed_keys, run_path
from agentrl.store.provenance import changed_files, data_hashes
from agentrl.store.run import RunDirectory

LONG_UPDATES, LONG_TOKENS = 1000, 50_000_000  # days on a CPU


def start(
    config: Config, output: TextIO | None = None, beside_others: bool = False, may_move: tuple[str, ...] = ()
) -> int:
    """Begin, resume or report the run that `config` describes; return the exit code.

    Output goes to the terminal or to `output`. With `beside_others` (one of several jobs), the run reserves its own
    GPUs. A resumed run may have other values of the keys `may_move`.
    """
    leads = config.hardware.rank_here == 0  # of several machines, the first one speaks and writes
    console = make_console(output) if leads else Console(quiet=True)
    for warning in [*check(config, here=not config.hardware.submits), *_warn_unwise(config)]:
        complaints = Console(file=output, stderr=output is None, soft_wrap=True)
        complaints.print(f"agentrl: warning: {warning}", markup=False, highlight=False)
    run = RunDirectory.create(config)
    old = run is None
    if run is None:
        run = RunDirectory(run_path(config))
        _check_same_run(run, config, may_move)
        for warning in _check_same_files(run, config, named=bool(may_move)) if leads else []:
            console.print(f"agentrl: warning: {warning}", markup=False, highlight=False)
    state = run.status()["status"]
    if config.scaled_by and (state != "completed" or config.dry_run):
        console.print(f"Scaled down for model={config.model.name} by {', '.join(config.scaled_by)}")
    if config.dry_run:
        print_estimate(config, console)
        if config.hardware.submits:
            console.print(f"Batch script: {write_script(run, config)}")
        console.print(f"Dry run: nothing was loaded or trained. {run.path}")
        return COMPLETED
    summary = json.loads(run.summary_path.read_text(encoding="utf-8")) if run.summary_path.exists() else {}
    missing = summary.get("missing", {}).get("items", 0)  # an endpoint did not play these items; they are tried again
    if state == "completed" and not missing:
        console.print(f"This run is complete: {run.path}")
        if summary:
            print_result(summary, console)
        console.print(f"Its results: {run.summary_path}. To run afresh: another seed=..., or run_id=...")
        return COMPLETED
    if state == "completed":
        beginning = f"{missing} items are missing and will be tried again: {run.path}"
    else:
        known = state in ("running", "interrupted", "failed")
        beginning = f"{'Resuming' if known else 'Run directory'}: {run.path}"
    if config.hardware.submits:
        console.print(beginning)
        run.adopt(config)
        job = submit(write_script(run, config))
        run.note(slurm=job)  # until the job writes its own status
        console.print(f"Submitted as SLURM job {job}; its log: {run.path}/job-{job}.log")
        return COMPLETED
    with run.lock() if leads else nullcontext() as lock:  # raises UserError if another process works on this run
        console.print(beginning)
        if leads:
            run.adopt(config)
            if old and not run.has_results():
                run.note_data(data_hashes(config))
        code = _train(run, config, lock, console, output, beside_others)
    if code == COMPLETED:
        console.print(f"Results: {run.path}")
    elif code == INTERRUPTED:
        console.print(f"Interrupted. The same command resumes it: {run.path}")
    else:
        console.print(f"Not completed (see status.json). The same command resumes it: {run.path}")
    return code


def _train(
    run: RunDirectory, config: Config, lock: int | None, console: Console, output: TextIO | None, beside_others: bool
) -> int:
    """Say what is loaded and what it waits for, reserve GPUs, and train; return the worker's exit code."""
    console.print(
        f"Starting a process for {config.algo.name} with {config.model.path}: its libraries load for some seconds."
    )
    if (machines := config.hardware.nodes) > 1:
        others = "the other machine" if machines == 2 else f"the other {machines - 1} machines"
        where = f"hardware.rendezvous={config.hardware.rendezvous}"
        console.print(f"It waits up to {WAIT_S / 60:.0f} minutes for {others} at {where}.")
    gpus_apart = beside_others and config.hardware.device == "cuda"
    with reserve_gpus(config.hardware.processes_here, console.print) if gpus_apart else nullcontext(None) as gpus:
        return launch(run, config, lock, output, gpus)


def check(config: Config, here: bool = True) -> list[str]:
    """Check everything that could stop a run before anything is made, and make its paths absolute. Return warnings.

    The machine itself is checked only for a run that will work here: not for a dry run, a complete run, or a job that a
    launcher sends elsewhere.
    """
    warnings = validate(config)
    make_paths_absolute(config)
    if here and not _is_complete(run_path(config)):
        check_tasks(config)
        if config.dry_run:
            _check_own_trainer(config)
        else:
            check_ready(config)
            warnings += check_reach(config)
    return warnings


def _warn_unwise(config: Config) -> list[str]:
    """Return warnings: a tiny model on a bench that it does not know, or training that takes days on a CPU."""
    if not isinstance(config.algo, Evaluate):
        if config.model.path == "builtin:tiny" and isinstance(config.bench, Minihif):
            return ["model=tiny does not know minihif's words and earns almost nothing there; use model=tiny_hif"]
        if config.model.path == "builtin:tiny_hif" and isinstance(config.bench, Minihop):
            return ["model=tiny_hif does not know minihop's words and earns almost nothing there; use model=tiny"]
    if config.hardware.device != "cpu" or config.trainer.max_steps > 0 or isinstance(config.algo, Evaluate):
        return []
    planned = estimate(config)
    if planned.updates <= LONG_UPDATES and planned.rollout_tokens <= LONG_TOKENS:
        return []
    return [
        f"{planned.updates:,} updates and up to {planned.rollout_tokens:,} sampled tokens are planned on a CPU: "
        f"no file of conf/preset/ scales algo={config.algo.name} down for model={config.model.name}; "
        "shorten it with trainer.max_steps=... and trainer.prompts_per_batch=..."
    ]


def make_paths_absolute(config: Config) -> None:
    """Make paths absolute, so that a run directory works from every directory. Hub ids stay as they are."""
    for path in paths_of(config):
        file = Path(path.value).expanduser()
        if path.key == "runs_dir" or (path.place == "weights" and not file.exists()):  # run_path reads runs_dir
            continue
        if path.place != "template" or path.value not in template_names():
            setattr(path.group, path.name, str(file.absolute()))


def _check_own_trainer(config: Config) -> None:
    """Load the file of algo=custom, as the run does before it loads the model. Raise UserError if it has no trainer."""
    if isinstance(config.algo, CustomAlgo):
        from agentrl.trainers.build import rl_trainer  # imports torch, for which no other dry run has to wait

        rl_trainer(config.algo)


def is_finished(config: Config) -> bool:
    """Check whether the run is complete, and no item of its evaluation is missing.

    Raises UserError if the directory holds another run, or if its data or weights have changed since.
    """
    run = RunDirectory(run_path(config))
    if not _is_complete(run.path) or (run.summary() or {}).get("missing", {}).get("items", 0):
        return False
    _check_same_run(run, config, ())
    _check_same_files(run, config)
    return True


def _is_complete(path: Path) -> bool:
    return (path / "status.json").is_file() and RunDirectory(path).status()["status"] == "completed"


def _check_same_run(run: RunDirectory, config: Config, may_move: tuple[str, ...]) -> None:
    """Raise UserError if the directory holds another run, which an explicit run_id may name."""
    run.status()  # refuses a directory that is not a run
    changed = [key for key in changed_keys(run.config(), config) if key not in may_move]
    if changed:
        moved = f"; if it has moved, agentrl resume {run.path} {changed[0]}=..." if set(changed) <= {*MAY_MOVE} else ""
        raise UserError(
            f"{run.path} holds a run with other values of {', '.join(changed[:5])}"
            f"{' and more' if len(changed) > 5 else ''}; choose another run_id=..., or leave it out{moved}"
        )


def _check_same_files(run: RunDirectory, config: Config, named: bool = False) -> list[str]:
    """Raise UserError if data or weights have changed since the run began: its results would mix, or be the old ones.

    Returns warnings instead for a Python file of the user's own, which may be mended between two starts, and for a
    complete run that the user has `named` by its directory. A run without any result may have new files.
    """
    if not run.environment_path.is_file():
        return []
    recorded = json.loads(run.environment_path.read_text(encoding="utf-8")).get("data", {})
    changed = changed_files(recorded, data_hashes(config))
    if not run.has_results():
        return []
    own_code = {path.key for path in paths_of(config) if path.value.endswith(".py")}
    done = named and run.status()["status"] == "completed"
    if (others := [name for name in changed if name not in own_code]) and not done:
        raise UserError(
            f"{run.path}: {', '.join(others[:3])}{' and more' if len(others) > 3 else ''} changed after this run "
            "began, and its results belong to the old content; give its command with run_id=... (a sweep: name=...), "
            "or move its directory away"
        )
    return [f"{name}: the file has changed since this run began; run_id=... starts another run" for name in changed]
