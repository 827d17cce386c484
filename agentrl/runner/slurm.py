"""A run as a SLURM job: one batch script starts the vLLM server and the machines that train, and goes on after a stop.

The script is a file of the run directory. It may be submitted again, by hand or by the run's own command: the job
continues the run from its last checkpoint.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from agentrl.config.schema import Config
from agentrl.config.vllm import samples_with_vllm, serve_command
from agentrl.core.errors import UserError, first_line
from agentrl.store.durable import write_text
from agentrl.store.run import RunDirectory

LIMIT_S = 1800  # for a server to load its model

SCRIPT = """\
#!/bin/bash
{options}
# Written by agentrl. `sbatch` of this file continues the run where it stopped.

log={log}
asked='' server='' trainer=''
# Before the time limit: let the run save. It goes back into the queue below.
# shellcheck disable=SC2329 # a trap calls it
save() {{ asked=yes; [ -z "$trainer" ] || kill -USR1 "$trainer"; }}
# Whatever ends first, nothing is left behind.
# shellcheck disable=SC2086,SC2329 # a trap calls it, and none of the two may have started
leave() {{ trap - EXIT; kill $trainer $server 2>/dev/null; wait; }}
trap save USR1
trap 'exit 143' TERM INT
trap leave EXIT
alive() {{ kill -0 "$1" 2>/dev/null; }}
pause() {{ sleep 1 & wait $!; }} # a signal ends it
# A step gets only the CPUs that it asks for: its part of the machine's, as of the GPUs.
# Even numbers, since a core may have two threads.
share() {{ echo $(($1 * ${{SLURM_CPUS_ON_NODE:-1}} / $2 > 1 ? $1 * ${{SLURM_CPUS_ON_NODE:-1}} / $2 / 2 * 2 : 1)); }}
cpus() {{ [ -n "${{SLURM_CPUS_PER_GPU:-}}" ] || echo "--cpus-per-task=$(share "$1" "$2")"; }}
again() {{ echo "agentrl: saved before the time limit; back into the queue"; scontrol requeue "$SLURM_JOB_ID"; }}

{setup}
cd {cwd} || exit 1
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
port=$((20000 + SLURM_JOB_ID % 20000)) # jobs that share a machine do not meet
trainers=$(IFS=,; echo "${{nodes[*]:0:{nodes}}}")
{serving}
[ -z "$asked" ] || {{ again; exit 1; }}
# shellcheck disable=SC2046 # cpus gives one option or none
srun --nodes={nodes} --ntasks={nodes} --ntasks-per-node=1 --nodelist="$trainers" {trainer_gpus}--kill-on-bad-exit=1 \\
  {python} -P -m agentrl resume {run} hardware.rendezvous="${{nodes[0]}}:$port"{handed} &
trainer=$!
while alive "$trainer" && {{ [ -z "$server" ] || alive "$server"; }}; do pause; done
if alive "$trainer"; then
  echo "agentrl: the vLLM server has ended; its log: $log"
  for _ in $(seq {grace}); do alive "$trainer" || break; pause; done
  kill "$trainer" 2>/dev/null
fi
wait "$trainer"
code=$?
trainer=
[ -z "$asked" ] || [ $code -eq 0 ] || again
exit $code
"""

SERVING = """\
host=${{nodes[{place}]}}
url=http://$host:$((port + 1))
export no_proxy="${{no_proxy:+$no_proxy,}}$host" NO_PROXY="${{NO_PROXY:+$NO_PROXY,}}$host"
# shellcheck disable=SC2046 # cpus gives one option or none
srun --nodes=1 --ntasks=1 --nodelist="$host" {gpus}--output="${{log//%/%%}}" --open-mode=append \\
  env {command} --host 0.0.0.0 --port $((port + 1)) &
server=$!
asks='import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=5)'
healthy() {{ {python} -c "$asks" "$url/health" 2>/dev/null; }}
until healthy; do
  if ! alive "$server" || [ $SECONDS -gt {limit} ]; then
    echo "agentrl: the vLLM server did not start; its log: $log"
    exit 1
  fi
  [ -z "$asked" ] || {{ again; exit 1; }}
  pause
done"""


def write_script(run: RunDirectory, config: Config) -> Path:
    """Write the batch script of a run into its directory."""
    path = run.path / "job.sh"
    write_text(path, batch_script(run, config))
    path.chmod(0o755)
    return path


def batch_script(run: RunDirectory, config: Config) -> str:
    """Return the batch script of a run."""
    hardware = config.hardware
    serves = samples_with_vllm(config) and config.vllm.mode == "server"
    gpus_here, log = hardware.processes_here, shlex.quote(str(run.path / "vllm.log"))
    python, apart = shlex.quote(sys.executable), hardware.slurm.vllm_node
    serving = ""
    if serves:
        place, beside = (hardware.nodes, 0) if apart else (0, gpus_here)
        gpus = _gpus(config, config.vllm.tensor_parallel, beside)
        words = {"place": place, "gpus": gpus, "command": serve_command(config), "python": python}
        serving = SERVING.format(**words, limit=LIMIT_S)
    return SCRIPT.format(
        options="\n".join(f"#SBATCH {shlex.quote(option)}" for option in options(run, config)),
        setup=hardware.slurm.setup or "",
        cwd=shlex.quote(os.getcwd()),
        nodes=hardware.nodes,
        serving=serving,
        trainer_gpus=_gpus(config, gpus_here, config.vllm.tensor_parallel if serves and not apart else 0),
        python=python,
        run=shlex.quote(str(run.path)),
        handed=' vllm.url="$url"' if serves else "",
        log=log,
        grace=hardware.slurm.grace,  # to save what is finished
    )


def options(run: RunDirectory, config: Config) -> list[str]:
    """Return the options of sbatch: what the run needs, then what the user adds."""
    hardware, slurm = config.hardware, config.hardware.slurm
    serves = samples_with_vllm(config) and config.vllm.mode == "server"
    apart = serves and slurm.vllm_node
    beside = config.vllm.tensor_parallel if serves else 0
    gpus = max(hardware.processes_here, beside) if apart else hardware.processes_here + beside
    found = [
        f"--job-name=agentrl-{run.path.parent.name}-{run.path.name}",
        "--dependency=singleton",  # submitted twice, the second job waits for the first
        f"--nodes={hardware.nodes + apart}",
        *([f"--gpus-per-node={gpus}"] if hardware.device == "cuda" else []),
        f"--output={str(run.path).replace('%', '%%')}/job-%j.log",
        "--open-mode=append",
        "--requeue",
        f"--signal=B:USR1@{slurm.grace}",
    ]
    named = {"time": slurm.time, "partition": slurm.partition, "account": slurm.account}
    return [*found, *(f"--{name}={value}" for name, value in named.items() if value is not None), *slurm.options]


def submit(script: Path) -> str:
    """Give a batch script to SLURM; return the number of the job. Raises UserError if that fails."""
    try:
        done = subprocess.run(["sbatch", "--parsable", str(script)], capture_output=True, encoding="utf-8", check=False)
    except FileNotFoundError as error:
        raise UserError(
            f"hardware=slurm: this machine has no sbatch; submit {script} where it has, or set hardware=multi_gpu"
        ) from error
    if done.returncode != 0:
        refused = first_line(Exception(done.stderr)) or f"exit code {done.returncode}"
        raise UserError(f"hardware=slurm: sbatch refuses {script}: {refused}; change hardware.slurm.*")
    return done.stdout.strip().partition(";")[0]


def _gpus(config: Config, count: int, others: int) -> str:
    """The options of srun for so many GPUs on each machine, which no other step of the job gets, and for their CPUs.

    `others` counts the GPUs there that another step gets.
    """
    if config.hardware.device != "cuda":
        return ""
    return f"--exact --gpus-per-node={count} $(cpus {count} {count + others}) "
