"""The command line answers quickly, explains mistakes plainly, and returns the right exit code."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from agentrl import __version__
from agentrl.commands.cli import COMMANDS
from agentrl.config import help as config_help
from agentrl.config.compose import CONF, compose
from agentrl.config.load import all_keys
from agentrl.runner.start import make_paths_absolute, start
from agentrl.store.run import RunDirectory
from tests.support.command_line import agentrl
from tests.support.helpers import composed
from tests.support.toolhop_rows import rows


def statuses(where: Path) -> list[str]:
    return [json.loads(file.read_text())["status"] for file in sorted(where.glob("runs/*/[!.]*/status.json"))]


# --- fast paths ---------------------------------------------------------------------------------------------------


def test_command_line_does_not_import_heavy_libraries(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['agentrl', 'dry_run=true']\n"
        "import agentrl.commands.cli\n"
        "try: agentrl.commands.cli.main()\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "heavy = {'torch', 'trl', 'transformers', 'peft', 'accelerate', 'datasets', 'wandb', 'matplotlib', 'numpy'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "HEAVY []" in result.stdout, result.stdout + result.stderr


def test_the_worker_never_sees_hydra() -> None:
    code = (
        "import sys, agentrl.config.load, agentrl.store.run; "
        "print(any(m.split('.')[0] == 'hydra' for m in sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "False"


@pytest.mark.parametrize("arguments", [("--help",), ("--cfg", "job"), ("-sc", "query=bash")])
def test_quick_answers_import_no_slow_library(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """Answers that must come at once import none of the slow libraries."""
    environment = os.environ | {"COMP_LINE": "agentrl algo=", "COMP_POINT": "13", "PYTHONPROFILEIMPORTTIME": "1"}
    command = [sys.executable, "-m", "agentrl", *arguments]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in result.stderr.splitlines()}
    assert "hydra" in imported
    assert imported.isdisjoint({"torch", "transformers", "trl", "datasets", "wandb", "pandas", "matplotlib"})
    assert list(tmp_path.iterdir()) == []


def test_version_prints_our_version(tmp_path: Path) -> None:
    assert agentrl(tmp_path, "--version").stdout == f"agentrl {__version__}\n"


def test_help_all_names_every_group_option_and_key(tmp_path: Path) -> None:
    text = agentrl(tmp_path, "--help", "all").stdout
    for command in COMMANDS:
        usage, purpose = config_help.usage_of(command)
        assert usage.startswith(f"agentrl {command}") and len(purpose) > 20
        assert f"  {command:<11} {purpose}\n              {usage}\n" in text
    for group in config_help.GROUPS:
        assert f"  {group} " in text
        for option in config_help.options(CONF, group):
            assert re.search(rf"\b{re.escape(option)}\b", text), option
    for key, _, doc in all_keys():
        assert f"  {key} (" in text
        assert f"              {doc}\n" in text
    assert re.search(r"  trainer.learning_rate \(float; 1e-06; 5e-06 with [^;]*\bhipo\b", text)
    assert "  bench.path (str; pairs; none: must be given)\n              A jsonl file" in text


def test_help_lists_the_users_own_files(tmp_path: Path) -> None:
    for name, text in (("mine", "defaults: [custom]\npath: x.py\n"), ("named", "defaults: [custom]\nname: mine\n")):
        (tmp_path / "own" / "algo").mkdir(parents=True, exist_ok=True)
        (tmp_path / "own" / "algo" / f"{name}.yaml").write_text(text)
    text = agentrl(tmp_path, "--config-dir", "own", "algo=mine", "--help").stdout
    assert re.search(r"algo +how to train: pact,[^:]* mine, ", text) and "algo.path=x.py" in text
    refused = agentrl(tmp_path, "--config-dir", "own", "algo=named", "--help")
    assert refused.returncode == 2 and "algo.name='mine' is not a known algo" in refused.stderr
    assert "a file of your own leaves algo.name=custom as it is" in refused.stderr


def test_help_shows_the_keys_of_the_choice_with_their_values(tmp_path: Path) -> None:
    pact = agentrl(tmp_path, "--help").stdout
    assert "algo=pact: Algorithm." in pact and "  algo.q=0.4 " in pact and "  trainer.max_steps=32 " in pact
    assert "\n  algo.tau=" not in pact and "\n  dual.cap=" in pact  # constraints of PACT read it
    assert "\n  dual.cap=" not in agentrl(tmp_path, "algo=grpo", "--help").stdout
    assert "\nExamples:\n  agentrl\n" in pact
    hipo = agentrl(tmp_path, "algo=hipo", "bench=verih", "--help", COLUMNS="80").stdout
    assert "algo=hipo: Algorithm." in hipo and "  algo.tau=0.7 " in hipo and "  dual.cap=20 " in hipo
    words = " ".join(hipo.split())
    assert "bench.path=... Must be given. The suite's file or directory" in words
    assert "algo.q=" not in hipo and "Unused: minihop" not in hipo
    assert len(pact.splitlines()) < len(agentrl(tmp_path, "--help", "all").stdout.splitlines()) / 2
    wrong = agentrl(tmp_path, "algo=hippo", "--help")
    assert (wrong.returncode, wrong.stderr) == (2, "agentrl: error: algo=hippo is not a choice; did you mean hipo?\n")


@pytest.mark.slow
def test_the_examples_of_the_help_compose(tmp_path: Path) -> None:
    for command in config_help.EXAMPLES:
        words = command.split()
        if words[0] != "agentrl" or {"--config-dir", "-m", "--cfg"} & set(words) or {*words[1:2]} & set(COMMANDS):
            continue
        result = agentrl(tmp_path, "--cfg", "job", *command.split()[1:])
        assert result.returncode == 0, (command, result.stderr)


def test_completion_knows_the_options(tmp_path: Path) -> None:
    result = agentrl(tmp_path, "-sc", "query=bash", COMP_LINE="agentrl algo=", COMP_POINT="13")
    assert result.stdout.split() == sorted(f"algo={option}" for option in config_help.options(CONF, "algo"))


SHELLS = {  # what a user types once, and what then completes a line
    "bash": 'eval "$(agentrl -sc install=bash)"; COMP_LINE="agentrl algo=split"; COMP_POINT=18; '
    'COMP_WORDS=(agentrl algo=split); COMP_CWORD=1; hydra_bash_completion; echo "${COMPREPLY[@]}"',
    "zsh": "autoload -Uz compinit bashcompinit; compinit -u -D; bashcompinit; "
    'eval "$(agentrl -sc install=zsh)"; COMP_LINE="agentrl algo=split" COMP_POINT=18 agentrl -sc query=zsh | '
    'grep split; print "$_comps[agentrl]"',
    "fish": 'agentrl -sc install=fish | source; complete -C "agentrl algo=split"',
}


@pytest.mark.slow
@pytest.mark.parametrize("shell", SHELLS)
def test_completion_in_a_real_shell(tmp_path: Path, shell: str) -> None:
    if (program := shutil.which(shell)) is None:
        pytest.skip(f"{shell} is not installed")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        [program, *(["-f"] if shell == "zsh" else []), "-c", SHELLS[shell]],
        cwd=tmp_path,
        env=os.environ | {"PATH": path, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    found = result.stdout.split()
    assert found[:1] == ["algo=split_softmax"], result.stdout + result.stderr
    if shell == "zsh":
        assert found[-2:] == ["-F", "hydra_bash_completion"], "the function is bound to the command"


def test_a_config_directory_adds_options(tmp_path: Path) -> None:
    (tmp_path / "mine" / "bench").mkdir(parents=True)
    (tmp_path / "mine" / "bench" / "short.yaml").write_text("defaults: [minihop]\ntrain_tasks: 7\n")
    result = agentrl(tmp_path, "--config-dir", "mine", "bench=short", "--cfg", "job")
    assert yaml.safe_load(result.stdout)["bench"]["train_tasks"] == 7


# --- mistakes -----------------------------------------------------------------------------------------------------

MISTAKES = [
    ("trainer.learning_rat=1", "did you mean trainer.learning_rate?"),
    ("max_steps=3", "did you mean trainer.max_steps?"),
    ("+trainer.foo=1", "unknown key trainer.foo"),
    ("bench.scenario=free", "bench.scenario is not a key of the chosen bench"),
    ("algo=pcat", "algo=pcat is not a choice; did you mean pact?"),
    ("algo=null", "algo=null is not a choice; choose from "),
    ("seed=abc", "seed='abc' must be of type int"),
    ("algo.q=2", "algo.q=2: must lie in [0, 1]"),
    ("algo.q=0.1,0.2", "add -m to sweep"),
    ("bench.train_hops=[1", "write a value as key=value"),
    ("name=${nope}", "Interpolation key 'nope' not found"),
    ("evaluate", "unknown command 'evaluate'"),
    ("runs_dir=/dev/null/runs", "a part of the path is a file"),
    (
        "bench.path=x.json",
        "bench.path is not a key of the chosen bench; it is a key of bench=toolhop, ftrl",
    ),
]


@pytest.mark.parametrize(("argument", "words"), MISTAKES, ids=[case[0] for case in MISTAKES])
def test_mistakes_are_one_line(tmp_path: Path, argument: str, words: str) -> None:
    result = agentrl(tmp_path, argument)
    assert result.returncode == 2
    assert result.stderr.startswith("agentrl: error: ")
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []  # nothing is left half-made


def test_a_missing_config_directory_is_refused(tmp_path: Path) -> None:
    result = agentrl(tmp_path, "--config-dir", "nowhere")
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert "--config-dir=nowhere: no such directory" in result.stderr


def test_a_missing_data_file_is_refused(tmp_path: Path) -> None:
    result = agentrl(tmp_path, "bench=toolhop", "bench.path=ToolHop.json")
    assert result.returncode == 2
    assert "bench.path=ToolHop.json: no such file" in result.stderr


# --- dry runs and sweeps ------------------------------------------------------------------------------------------


def test_dry_run_writes_the_directory_and_nothing_else(tmp_path: Path) -> None:
    result = agentrl(tmp_path, "dry_run=true", "seed=5")
    assert result.returncode == 0, result.stderr
    (run,) = tmp_path.glob("runs/minihop-tiny-pact/s5-*")
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert (saved["seed"], saved["algo"]["q"]) == (5, 0.4)
    assert statuses(tmp_path) == ["dry_run"]
    assert saved["scaled_by"] == [
        f"conf/{name}.yaml" for name in ("preset/tiny_pact", "limits/tiny", "limits/tiny_minihop")
    ]
    assert f"Scaled down for model=tiny by {', '.join(saved['scaled_by'])}" in result.stdout
    assert "optimizer updates" in result.stdout
    assert str(run) in result.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}  # no outputs/, no logs
    again = agentrl(tmp_path, "dry_run=true", "seed=5")
    assert again.returncode == 0
    assert len(list(tmp_path.glob("runs/*/*"))) == 1


ONE = ("trainer.prompts_per_batch=1", "trainer.minibatch_prompts=1", "bench.test_fraction=0.4")  # of three rows


def test_paths_are_kept_absolute(tmp_path: Path) -> None:
    (tmp_path / "ToolHop.json").write_text(json.dumps(rows()))
    result = agentrl(tmp_path, "dry_run=true", "bench=toolhop", "bench.path=ToolHop.json", *ONE)
    assert result.returncode == 0, result.stderr
    (config,) = tmp_path.glob("runs/*/*/config.yaml")
    assert yaml.safe_load(config.read_text())["bench"]["path"] == str(tmp_path / "ToolHop.json")


def test_every_path_of_a_configuration_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    judged = ("judge=openai", "judge.model=m", "judge.system_rubric=s.txt", "judge.user_rubric=u.txt", "judge.cache=c")
    config = composed(
        *("algo=dpo", "algo.pairs=p.jsonl", "bench=pairs", "bench.path=b.jsonl", "traces=t.jsonl", "runs_dir=r"),
        *("hardware.accelerate_config=~/a.yaml", "model=custom", "model.path=weights", *judged),
    )
    make_paths_absolute(config)
    judge, here = config.judge, tmp_path
    assert [config.algo.pairs, config.bench.path, config.traces] == [f"{here}/{x}.jsonl" for x in ("p", "b", "t")]
    assert [judge.system_rubric, judge.user_rubric, judge.cache] == [f"{here}/{x}" for x in ("s.txt", "u.txt", "c")]
    assert config.hardware.accelerate_config == str(Path.home() / "a.yaml")
    ready = composed("hardware=gpu", "hardware.accelerate_config=zero2")  # a name, not a file
    make_paths_absolute(ready)
    assert ready.hardware.accelerate_config == "zero2"
    assert (config.model.path, config.runs_dir) == (f"{here}/weights", "r")
    hub = composed("model=custom", "model.path=someone/agent", "judge=local", "judge.path=someone/judge")
    make_paths_absolute(hub)
    assert (hub.model.path, hub.judge.path, hub.traces) == ("someone/agent", "someone/judge", None)


def test_a_run_id_is_not_reused_for_another_run(tmp_path: Path) -> None:
    assert agentrl(tmp_path, "dry_run=true", "run_id=a").returncode == 0
    run = RunDirectory(tmp_path / "runs" / "minihop-tiny-pact" / "a")
    run.set_status("interrupted")
    result = agentrl(tmp_path, "dry_run=true", "run_id=a", "algo.q=0.1")
    assert result.returncode == 2
    assert "algo.q" in result.stderr


def test_a_dry_run_does_not_take_the_run_id(tmp_path: Path) -> None:
    for q in (0.1, 0.2):
        assert start(compose([f"runs_dir={tmp_path}", "dry_run=true", "run_id=a", f"algo.q={q}"])) == 0
    run = RunDirectory(tmp_path / "minihop-tiny-pact" / "a")
    assert (run.config().algo.q, run.status()["status"]) == (0.2, "dry_run")
    real = compose([f"runs_dir={tmp_path}", "run_id=a", "algo.q=0.3"])
    with run.lock():  # a run that has just been started from it
        assert RunDirectory.create(real) is None
    taken = RunDirectory.create(real)
    assert taken is not None and taken.path == run.path
    assert (run.config().algo.q, run.status()["status"], run.config().dry_run) == (0.3, "created", False)
    # A dry run of a command whose run exists only reads that run.
    assert start(compose([f"runs_dir={tmp_path}", "run_id=a", "algo.q=0.3", "dry_run=true"])) == 0
    assert (run.status()["status"], run.config().dry_run) == ("created", False)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("-m", "seed=0,1,2"), ("sweep=seeds", "seed=0,1,2")])
def test_sweeps_have_a_directory_for_each_job(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    result = agentrl(tmp_path, *arguments, "dry_run=true")
    assert result.returncode == 0, result.stderr
    runs = sorted(path.name.split("-")[0] for path in tmp_path.glob("runs/minihop-tiny-pact/*"))
    assert runs == ["s0", "s1", "s2"]
    saved = [yaml.safe_load(file.read_text()) for file in tmp_path.glob("runs/*/*/config.yaml")]
    groups = {config["tracker"]["group"] for config in saved}
    assert len(groups) == 1 and None not in groups
    assert {len(config["scaled_by"]) for config in saved} == {3}


@pytest.mark.parametrize("swept", ["run_id=again", "seed=0 faults.no_signal=warn,stop"])
def test_jobs_of_a_sweep_do_not_share_a_directory(tmp_path: Path, swept: str) -> None:
    """Otherwise one run's result would stand for all of them."""
    seeds = ["seed=0,1"] if "seed" not in swept else []
    result = agentrl(tmp_path, "-m", *swept.split(), *seeds)
    assert result.returncode == 2, result.stdout
    assert "is the directory of an earlier job, too" in result.stderr and "none was started" in result.stderr


def test_a_sweep_does_not_show_results_of_data_that_has_changed(tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps({"system": f"s{n}", "user": f"u{n}"}) + "\n" for n in range(10)))
    words = ("algo=eval", "bench=pairs", f"bench.path={data}")
    for seed in (0, 1):
        run = RunDirectory.create(compose([*words, f"runs_dir={tmp_path / 'runs'}", f"seed={seed}"]))
        assert run is not None
        run.set_status("completed")
    data.write_text(data.read_text().replace("u3", "v3"))
    result = agentrl(tmp_path, "-m", *words, "seed=0,1")
    assert result.returncode == 2 and "bench.path changed after this run began" in result.stderr, result.stdout
    assert "2 of 2 jobs cannot work" in result.stderr


def test_every_job_of_a_sweep_is_checked_before_the_first_begins(tmp_path: Path) -> None:
    result = agentrl(tmp_path, "-m", "dry_run=true", "algo.q=0.1,7,0.2,8", "seed=0")
    assert result.returncode == 2
    first, second, last = result.stderr.splitlines()
    assert first.startswith("agentrl: error: algo.q=7: must lie in [0, 1]") and first.endswith("algo.q=7 seed=0]")
    assert second.startswith("agentrl: error: algo.q=8: must lie in [0, 1]")
    assert last == "2 of 4 jobs cannot work; none was started."
    assert list(tmp_path.iterdir()) == []
