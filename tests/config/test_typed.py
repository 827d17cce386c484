"""What a person types: names of models, words of other tools, and paths with any letter in them."""

from __future__ import annotations

import json
import os
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml

from agentrl.commands.analyse import main as analyse
from agentrl.commands.arguments import split_places
from agentrl.commands.doctor import main as doctor
from agentrl.config.compose import compose
from agentrl.config.target import weights_of
from agentrl.config.typed import quote_override, split_names
from agentrl.core.errors import UserError
from agentrl.runner.doctor import Finding
from tests.support.command_line import run_here

TINY = Path(str(files("agentrl.tiny") / "tiny"))
# '=', blanks, brackets, '~', commas, quotes, interpolation, letters beyond ASCII, a number
ODD = ("a=b", "a [1]", "~a", "a,b", "it's", 'a "b"', "日本", "1e3", "a\\b")
ALSO_ODD = ("a b", "{a}", "(a)", "a~", "ä", "a#b", "a&b", "a;b!")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def a_run(where: Path, **model: str) -> Path:
    """The directory of a run that trained `model`, without weights."""
    run = where / "runs" / "minihop-tiny-pact" / "s0-12345678"
    (run / "model").mkdir(parents=True)
    (run / "model" / "config.json").write_text("{}")
    (run / "status.json").write_text('{"status": "completed"}')
    saved = {"family": "tiny", "reasoning": "content", "dtype": "float32", "attn_implementation": "sdpa"} | model
    (run / "config.yaml").write_text(yaml.safe_dump({"model": saved}))
    return run


def saved_models(where: Path) -> list[str]:
    return sorted(yaml.safe_load(file.read_text())["model"]["path"] for file in where.glob("runs/*/*/config.yaml"))


# --- model= -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("typed", ["checkpoint", "./checkpoint", "{}/checkpoint"])
def test_a_run_trains_a_checkpoint_by_its_path(here: Path, typed: str) -> None:
    shutil.copytree(TINY, here / "checkpoint")
    assert run_here("dry_run=true", f"model={typed.format(here)}") == 0
    assert saved_models(here) == [str(here / "checkpoint")]


@pytest.mark.slow
def test_a_directory_may_have_the_name_of_a_preset(here: Path) -> None:
    folder = here / "models" / "smollm2-135m"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    for name in (str(folder), "models/smollm2-135m"):
        assert compose([f"model={name}"]).model.path == str(folder)


@pytest.mark.slow
def test_a_sweep_takes_presets_hub_ids_and_directories_together(here: Path) -> None:
    shutil.copytree(TINY, here / "one" / "checkpoint")
    shutil.copytree(TINY, here / "two" / "checkpoint")
    arguments = ["dry_run=true", "-m", "model=tiny,Qwen/Qwen3-4B,someone/agent-7b,one/checkpoint,./two/checkpoint"]
    assert run_here(*arguments) == 0
    expected = ["Qwen/Qwen3-4B", f"{here}/one/checkpoint", f"{here}/two/checkpoint", "builtin:tiny", "someone/agent-7b"]
    assert saved_models(here) == sorted(expected)


def test_a_runs_model_keeps_the_budgets_of_what_it_was_trained_from(here: Path) -> None:
    run = a_run(here, name="tiny", path="builtin:tiny")
    config = compose([f"model={run}", "algo=grpo"])
    assert (config.trainer.max_steps, config.rollout.max_completion_tokens) == (32, 512)
    hub = a_run(here / "other", name="someone--agent-7b", path="someone/agent-7b")
    assert compose([f"model={hub}"]).rollout.max_completion_tokens == 23000


def test_other_keys_of_the_model_and_adapters_go_with_a_name(here: Path) -> None:
    config = compose(["model=someone/agent-7b", "model.family=qwen3", "model/lora=on", "model.lora.r=4"])
    assert (config.model.path, config.model.family, config.model.lora.enabled) == ("someone/agent-7b", "qwen3", True)
    assert config.model.lora.r == 4
    with pytest.raises(UserError, match=r"model.path"):
        compose(["model=custom"])


def test_commands_take_the_same_names(here: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_run(here, name="tiny", path="builtin:tiny")
    assert weights_of("qwen3-4b") == weights_of("Qwen/Qwen3-4B") == "Qwen/Qwen3-4B"
    assert weights_of("builtin:tiny") == weights_of("tiny") == "builtin:tiny"
    assert weights_of(str(run)) == str(run / "model")
    monkeypatch.setattr("agentrl.commands.doctor.diagnose", lambda config: [Finding("model", "ok", config.model.path)])
    assert doctor(["--json", "model=someone/agent-7b"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["detail"] == "someone/agent-7b"
    with pytest.raises(UserError, match=r"base=\.\.\. is missing"):
        analyse(["attention", "someone/agent-7b"])


def test_a_file_is_no_model(here: Path) -> None:
    (here / "model.safetensors").touch()
    with pytest.raises(UserError, match=r"model=model.safetensors is a file; give the directory"):
        compose(["model=model.safetensors"])


# --- the user's own files ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_builds_on_a_packaged_option_has_its_scaled_down_files(here: Path) -> None:
    for name, text in {
        "bench/short.yaml": "defaults: [minihop]\ntrain_tasks: 7\n",
        "bench/shorter.yaml": "defaults: [short]\ntrain_tasks: 3\n",
        "bench/own.yaml": "defaults: [minihop]\n",
        "model/small.yaml": "defaults: [tiny]\nname: small\n",
        "algo/ours.yaml": "# @package _global_\ndefaults: [pact, _self_]\nalgo: {q: 0.1}\n",
        "limits/tiny_own.yaml": "# @package _global_\nrollout: {max_completion_tokens: 99}\n",
    }.items():
        (here / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (here / "mine" / name).write_text(text)

    def budget(*overrides: str) -> tuple[int, int]:
        config = compose(["--config-dir", "mine", *overrides])
        return config.rollout.max_completion_tokens, config.trainer.max_steps

    assert budget("bench=short") == budget("bench=shorter") == budget("model=small") == budget("algo=ours") == (512, 32)
    assert budget("bench=short", "model=small", "algo=ours") == (512, 32)
    assert budget("bench=own") == (99, 32)
    assert budget("bench=short", "model=qwen3-4b") == (23000, -1)  # where there is none, there is none
    assert run_here("--config-dir=mine", "dry_run=true", "bench=short", "algo=sft") == 0


# --- paths ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("odd", [*ODD, *(pytest.param(odd, marks=pytest.mark.slow) for odd in ALSO_ODD)])
def test_paths_with_any_letter_reach_the_configuration(here: Path, odd: str) -> None:
    shutil.copytree(TINY, here / odd)
    (here / odd / "bench").mkdir()
    (here / odd / "bench" / "short.yaml").write_text("defaults: [toolhop]\n")
    for file in ("tools.json", "traces.jsonl"):
        (here / odd / file).write_text("[]" if file == "tools.json" else "")
    config = compose(
        [
            *("--config-dir", odd, "bench=short", f"model={odd}", f"bench.path={odd}/tools.json", f"runs_dir={odd}"),
            *(f"traces={here}/{odd}/traces.jsonl", f"run_id={odd}" if odd != "a,b" else "run_id=x"),
        ]
    )
    assert config.model.path == str(here / odd)
    assert os.path.abspath(config.bench.path) == f"{here}/{odd}/tools.json"
    assert config.traces == f"{here}/{odd}/traces.jsonl"
    assert os.path.abspath(config.runs_dir) == f"{here}/{odd}"
    assert config.run_id == (odd if odd != "a,b" else "x")


def test_a_run_and_a_sweep_with_odd_paths(here: Path) -> None:
    odd = 'm [v=2], ~ñ\'s "q"'
    shutil.copytree(TINY, here / odd)
    assert run_here("dry_run=true", "-m", f"model=tiny,./{odd}", f"runs_dir={here}/out [x=1], ü") == 0
    runs = here / "out [x=1], ü"
    (record,) = runs.glob("sweeps/*/sweep.json")
    assert len(json.loads(record.read_text())["jobs"]) == 2
    paths = {yaml.safe_load(file.read_text())["model"]["path"] for file in runs.glob("*/*/config.yaml")}
    assert paths == {"builtin:tiny", str(here / odd)}


def test_commands_tell_places_with_an_equals_sign_from_keys(here: Path) -> None:
    (here / "a=b").mkdir()
    assert split_places(["runs/x=1/s0", "a=b", "out=c=d.html"], {"out": ""}) == (
        ["runs/x=1/s0", "a=b"],
        {"out": "c=d.html"},
    )
    with pytest.raises(UserError, match="no key ouf; did you mean out"):
        split_places(["ouf=x"], {"out": ""})
    with pytest.raises(UserError, match="--out is not a flag; write keys without dashes: out="):
        split_places(["--out", "x"], {"out": ""})


def test_commas_divide_only_what_is_not_one_place(here: Path) -> None:
    (here / "a,b").mkdir()
    assert split_names("tiny,a,b,c") == ["tiny", "a,b", "c"]
    assert quote_override("bench.path=a,b", sweep=True) == "bench.path='a,b'"
    assert quote_override("seed=0,1", sweep=True) == "seed=0,1"
    for name in ("c", "d"):
        (here / name).touch()
    assert quote_override("bench.path=c,d", sweep=False) == "bench.path=c,d"  # Hydra says that -m is missing
    with pytest.raises(UserError, match=r"add -m to sweep"):
        compose(["bench.path=c,d"])
    for untouched in ("algo.q=choice(0.1,0.2)", "tracker.tags=[a,b]", "name=${bench.name}-x", "traces=null", "a"):
        assert quote_override(untouched, sweep=True) == untouched


# --- words of other tools ---------------------------------------------------------------------------------------------

MEANT = [
    ("lr=1e-4", "trainer.learning_rate?"),
    ("train.lr=1e-4", "trainer.learning_rate?"),
    ("batch_size=8", "trainer.prompts_per_batch"),
    ("epochs=1", "trainer.epochs?"),
    ("steps=1", "trainer.max_steps?"),
    ("gpu=1", "hardware=gpu"),
    ("gpus=2", "hardware=multi_gpu hardware.processes=N?"),
    ("output_dir=out", "runs_dir?"),
    ("dataset=x", "bench=NAME"),
    ("max_tokens=9", "rollout.max_completion_tokens?"),
    ("temperature=1", "rollout.temperature"),
    ("lora=true", "model/lora=on?"),
    ("bf16=true", "hardware.bf16=true?"),
    ("beta=0.1", "algo.kl_coef"),
    ("tau=0.7", "algo.tau"),
    ("K=4", "rollout.num_generations?"),
    ("wandb=true", "tracker=wandb?"),
    ("hardware=cuda", "did you mean gpu?"),
    ("Model=tiny", "did you mean model?"),
    ("Trainer.max_steps=1", "did you mean trainer.max_steps?"),
    ("eval.n=3", "did you mean eval.samples?"),
    ("ftrl.path=x", "did you mean bench.path?"),
    ("openai.model=x", "did you mean judge.model?"),
    ("bench=", "bench= is not a choice; choose from bfcl, "),
    ("algo=1", "algo=1 is not a choice; choose from "),
    ("+algo=null", "algo=null is not a choice; choose from "),
    ("algo=[pact]", "algo=[pact] is not a choice; did you mean pact?"),
    ("~algo", "~algo: a run needs this group; choose algo=NAME"),
    ("preset=tiny_grop", "preset=tiny_grop is not a choice; did you mean tiny_grpo?"),
    ("limits=tiny_minihpo", "limits=tiny_minihpo is not a choice; did you mean tiny_minihop?"),
    ("preset=null", "preset=null: write '~preset' to take the values that are not scaled down"),
    ("alog=pact", "unknown key alog; did you mean algo?"),
    ("modle=tiny", "unknown key modle; did you mean model?"),
    ("rollout.vllm=true", "did you mean vllm.mode=server or colocate?"),
    ("rollout.frobnicate=1", "unknown key rollout.frobnicate; agentrl --help all lists the keys"),
    ("model=", "model= is not a choice; choose from "),
]
ALSO_MEANT = [
    *[(f"{word}=1e-4", "trainer.learning_rate?") for word in ("learning_rate", "trainer.lr", "+lr")],
    *[(f"{word}=8", "trainer.prompts_per_batch") for word in ("trainer.batch_size", "bs")],
    *[(f"{word}=1", "hardware=gpu") for word in ("cuda", "device")],
    ("runs=out", "runs_dir?"),
    *[(f"{word}=4", "rollout.num_generations?") for word in ("num_generations", "group_size")],
    ("trainer.learning_rat=1", "trainer.learning_rate?"),
]


@pytest.mark.parametrize(
    ("typed", "meant"), [*MEANT, *(pytest.param(*case, marks=pytest.mark.slow) for case in ALSO_MEANT)]
)
def test_a_word_of_another_tool_is_understood(typed: str, meant: str) -> None:
    with pytest.raises(UserError) as error:
        compose([typed])
    assert meant in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("lr=1e-4", "trainer.learning_rate?"),
        ("model=null", "model=null is not a choice; choose from custom, "),
        ("cuda", "hardware=gpu"),
        ("train", "agentrl algo=..."),
        ("runs", "runs_dir=..."),
        ("tiny", "model=tiny?"),
        ("pact", "algo=pact?"),
        ("doktor", "agentrl doctor?"),
    ],
)
def test_the_command_says_so_in_one_line(here: Path, capsys: Any, typed: str, meant: str) -> None:
    assert run_here(typed) == 2
    error = capsys.readouterr().err
    assert meant in error and len(error.splitlines()) == 1
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["--lr", "1e-4"], "trainer.learning_rate=1e-4"),
        (["--model=x"], "model=x"),
        (["seed=1", "--num-train-epochs", "3"], "trainer.epochs=3"),
        (["--trainer.max_steps=3"], "trainer.max_steps=3"),
        (["--frobnicate"], "--frobnicate is not a flag"),
        (["--helpp"], "--helpp is not a flag; did you mean --help?"),
        (["seed=ñ"], "must be of type int"),
        (["tracker.tags=[ü]"], "'tracker.tags=[\"a b\"]'"),
        (["algo=pact", "tiny"], "did you mean model=tiny?"),
        (["-m", "--cfg", "job", "seed=0,1"], "leave out -m"),
    ],
)
def test_flags_and_texts_that_hydra_does_not_take(here: Path, capsys: Any, typed: list[str], meant: str) -> None:
    assert run_here(*typed) == 2
    error = capsys.readouterr().err
    assert meant in error and len(error.splitlines()) == 1 and error.startswith("agentrl: error: ")


def test_flags_may_stand_anywhere(here: Path) -> None:
    assert run_here("dry_run=true", "-m", "seed=0,1") == 0
    assert len(saved_models(here)) == 2
