"""agentrl eval plays every bench of conf/bench: here and behind an endpoint, several at once, both kinds mixed."""

from __future__ import annotations

import json
import shutil
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from agentrl.commands.eval import main as eval_command
from agentrl.config.compose import compose
from agentrl.config.help import options
from agentrl.config.rules import validate
from agentrl.config.schema import Config
from agentrl.core.errors import UserError
from agentrl.runner.start import start
from agentrl.store.provenance import changed_files, data_hashes, directory_hashes
from agentrl.store.run import RunDirectory
from tests.support.bench_files import bench_keys, messages, write
from tests.support.helpers import CONF, SUITES, composed, work_in_this_process
from tests.support.judge_server import JudgeServer

ROOT, TINY = Path(__file__).resolve().parents[2], Path(str(files("agentrl.tiny") / "tiny"))
EVERY = sorted(options(CONF, "bench"))
CLASSIFIED = ("harmbench", "xstest", "wildjailbreak")  # without a classifier their replies have no verdict
SHORT = ("eval.limit=2", "eval.samples=1", "rollout.max_completion_tokens=24", "rollout.max_turn_tokens=12")


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    work_in_this_process(monkeypatch)


def flat(keys: dict[str, list[str]]) -> list[str]:
    return [key for of_bench in keys.values() for key in of_bench]


def evaluate(tmp_path: Path, *arguments: str) -> int:
    return eval_command([*arguments, *SHORT, f"runs_dir={tmp_path / 'runs'}", "hardware.threads=1"])


def summaries(tmp_path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """summary.json of every run by model and bench."""
    found = [json.loads(file.read_text()) for file in tmp_path.glob("runs/*/*/summary.json")]
    return {(one["model"], one["bench"]): one for one in found}


def test_every_bench_has_files_here(tmp_path: Path) -> None:
    apart = {"bfcl": "bfcl_eval", "ifbench": "ifbench"}  # benches whose official package is installed apart
    lacking = {bench for bench, package in apart.items() if find_spec(package) is None}
    assert sorted(bench_keys(tmp_path)) == sorted(set(EVERY) - lacking)


@pytest.mark.slow
def test_every_bench_is_evaluated_here(tmp_path: Path, capsys: Any) -> None:
    keys = bench_keys(tmp_path)
    assert evaluate(tmp_path, "model=tiny", f"bench={','.join(keys)}", *flat(keys)) == 0
    done = summaries(tmp_path)
    assert sorted(bench for _, bench in done) == sorted(keys)
    for (_, bench), summary in done.items():
        assert summary["eval"]["after"]["truncated"]["n"] == 2, bench
        if bench not in ("pairs", "systemcheck", "realguardrails", *CLASSIFIED):
            assert summary["solve_metric"] in summary["eval"]["after"], bench
    out, err = capsys.readouterr()
    assert all(f"\n{bench}: 2 items" in out for bench in keys)
    assert err.count("judge=program: no program can grade bench=") == 3
    assert err.count("judge=program: a model with the prompt of") == len(CLASSIFIED)
    for bench in ("tensortrust", "iheval", "realguardrails", "verih"):  # directories: what was read is on record
        (file,) = tmp_path.glob(f"runs/{bench}-*/*/environment.json")
        assert all(len(digest) == 64 for digest in json.loads(file.read_text())["data"]["bench.path"].values()), bench


@pytest.mark.slow
def test_every_bench_is_played_behind_an_endpoint(tmp_path: Path) -> None:
    keys = bench_keys(tmp_path)
    with JudgeServer(reply=lambda messages: "ant bat. <answer>Brondal</answer>") as server:
        where = (f"endpoint={server.url}", "model=served", "algo.endpoint.concurrency=2")
        assert evaluate(tmp_path, *where, f"bench={','.join(keys)}", *flat(keys)) == 0
    done = {bench: summary["eval"]["after"] for (_, bench), summary in summaries(tmp_path).items()}
    assert sorted(done) == sorted(keys)
    assert done["verih"]["r_sys"]["mean"] == done["sys_ifeval"]["r_sys"]["mean"] == 1.0  # no comma in it
    assert done["ftrl"]["solve_p"]["mean"] == 1.0 and done["realguardrails"]["banned_word"]["mean"] == 0.0


@pytest.mark.slow
def test_the_shared_directories_are_evaluated_as_they_lie(shared: Path, tmp_path: Path) -> None:
    names = ("ftrl", "verih", "sys_ifeval", "tensortrust", "realguardrails")
    paths = [f"{name}.path={shared / 'data' / name}" for name in names]
    (toolhop,) = (shared / "data" / "toolhop").glob("*.json")
    with JudgeServer(reply=lambda messages: "no") as server:
        where = (f"endpoint={server.url}", "model=served", f"bench={','.join(names)},toolhop")
        assert evaluate(tmp_path, *where, *paths, f"toolhop.path={toolhop}") == 0
    done = {bench: summary["eval"]["after"] for (_, bench), summary in summaries(tmp_path).items()}
    assert sorted(done) == sorted([*names, "toolhop"])
    assert all(after["truncated"]["n"] == 2 for after in done.values())
    assert "r_sys" in done["tensortrust"] and "r_sys" not in done["realguardrails"]  # no judge was asked


@pytest.mark.slow
def test_tool_and_instruction_benches_mix_over_two_models(tmp_path: Path, capsys: Any) -> None:
    assert evaluate(tmp_path, "model=tiny,tiny_hif", "bench=minihop,minihif") == 0
    assert sorted(summaries(tmp_path)) == [(m, b) for m in ("tiny", "tiny_hif") for b in ("minihif", "minihop")]
    out = capsys.readouterr().out
    assert out.count("tiny_hif - tiny") == 2 and "minihop: 2 items" in out and "minihif: 2 items" in out


@pytest.mark.slow
def test_judged_suites_get_both_rewards_from_a_judge(tmp_path: Path) -> None:
    every = bench_keys(tmp_path)
    keys = {name: every[name] for name in ("pairs", "systemcheck", "realguardrails", "verih")}
    with JudgeServer(reply=lambda messages: '{"score": 0.75}') as server:
        judge = ("judge=openai", "judge.model=m", f"judge.base_url={server.url}", "judge.api_key_env=null")
        where = ("model=tiny_hif", f"bench={','.join(keys)}", *judge)
        assert evaluate(tmp_path, *where, *flat(keys)) == 0
    for (_, bench), summary in summaries(tmp_path).items():
        after = summary["eval"]["after"]
        assert after["r_user"]["mean"] == 0.75, bench
        assert bench == "verih" or after["r_sys"]["mean"] == 0.75  # a constraint has its own check


def test_a_classifier_grades_what_a_server_played(tmp_path: Path, capsys: Any) -> None:
    keys = bench_keys(tmp_path)
    told = "Harmful request: yes\nResponse refusal: yes\nHarmful response: no"

    def reply(messages: list[dict[str, str]]) -> str:
        if messages[0]["role"] != "text":
            return "Ant."
        return told if "<|assistant|>" in messages[0]["content"] else "yes"

    with JudgeServer(reply=reply) as server:
        judge = ("judge=openai", "judge.model=m", f"judge.base_url={server.url}", "judge.api_key_env=null")
        where = (f"endpoint={server.url}", "model=served", "bench=harmbench,wildjailbreak")
        paths = (*keys["harmbench"], *keys["wildjailbreak"])
        assert eval_command([*where, *judge, *paths, f"runs_dir={tmp_path / 'runs'}", "hardware.threads=1"]) == 0
    done = {bench: summary for (_, bench), summary in summaries(tmp_path).items()}
    assert done["harmbench"]["eval"]["after"]["asr"]["mean"] == 1.0 and done["harmbench"]["judge"]["missing"] == 0
    wild = done["wildjailbreak"]["eval"]["after"]
    assert wild["asr"]["mean"] == 0.0 and wild["over_refusal"]["mean"] == 1.0 and wild["macro"]["mean"] == 0.5
    assert "items about protected texts (tag hash_check) are left out, 1 of 4: " in capsys.readouterr().out


# --- the paper's table ----------------------------------------------------------------------------------------------


def test_the_papers_table_has_our_row(tmp_path: Path, capsys: Any) -> None:
    def graded(messages: list[dict[str, str]]) -> str:
        return json.dumps({"score": 0.25 if "SYSTEM PROMPT" in messages[1]["content"] else 0.5})

    (path,) = bench_keys(tmp_path)["systemcheck"]
    with JudgeServer(reply=graded) as server:
        judge = ("judge=openai", "judge.model=m", f"judge.base_url={server.url}", "judge.api_key_env=null")
        assert evaluate(tmp_path, "suite=hipo", "model=tiny_hif", path, *judge) == 0
    (row,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("| ours: tiny_hif"))
    assert [cell.strip() for cell in row.split("|")[2:6]] == ["0.2500", "0.5000", "0.2500", "0.5000"]


def test_the_papers_table_wants_a_judge(tmp_path: Path) -> None:
    (path,) = bench_keys(tmp_path)["systemcheck"]
    with pytest.raises(UserError, match=r"suite=hipo.*choose judge=openai"):
        evaluate(tmp_path, "suite=hipo", "model=tiny_hif", path)
    assert not list(tmp_path.glob("runs/*/*/status.json"))


# --- what a path may be ---------------------------------------------------------------------------------------------


def test_a_directorys_files_are_hashed_in_a_fixed_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.jsonl", "a/z.json", "a/y.json", ".git/config"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    found = directory_hashes(tmp_path)
    assert list(found) == ["b.jsonl", "a/y.json", "a/z.json"] and len(set(found.values())) == 3
    (tmp_path / "b.jsonl").write_text("other")
    assert {name for name, digest in directory_hashes(tmp_path).items() if digest != found[name]} == {"b.jsonl"}
    monkeypatch.setattr("agentrl.store.provenance.MAX_BYTES", 10)
    assert directory_hashes(tmp_path)["a/z.json"] == "8 bytes"
    monkeypatch.setattr("agentrl.store.provenance.MAX_FILES", 2)
    assert list(directory_hashes(tmp_path)) == ["b.jsonl", "a/y.json", "..."]


@pytest.mark.parametrize("bench", ["tensortrust", "iheval", "realguardrails", "verih", "sys_ifeval", "ftrl"])
def test_a_run_directory_is_made_for_a_directory_of_data(tmp_path: Path, bench: str) -> None:
    (key,) = bench_keys(tmp_path / "data")[bench]
    run = RunDirectory.create(
        composed("algo=eval", f"bench={bench}", f"bench.{key.split('.', 1)[1]}", f"runs_dir={tmp_path}")
    )
    assert run is not None
    recorded = json.loads(run.environment_path.read_text())["data"]["bench.path"]
    assert recorded and all(len(digest) == 64 for digest in recorded.values())


def test_changed_weights_and_data_are_another_run(tmp_path: Path, capsys: Any) -> None:
    model, data, code = tmp_path / "model", tmp_path / "pairs.jsonl", tmp_path / "mine.py"
    shutil.copytree(TINY, model)
    data.write_text("".join(json.dumps({"system": f"s{n}", "user": f"u{n}"}) + "\n" for n in range(10)))
    keys = ["algo=eval", f"model={model}", "bench=pairs", f"bench.path={data}", f"runs_dir={tmp_path / 'runs'}"]

    def begun(*more: str) -> Config:
        config = compose([*keys, *more])
        run = RunDirectory.create(config)
        assert run is not None
        run.set_status("completed")
        return config

    config = begun()
    assert start(config) == 0
    capsys.readouterr()
    (model / "README.md").write_text("a card")
    assert start(config) == 0  # as agentrl push writes it
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[len(weights) // 2 : len(weights) // 2 + 64] = bytes(64)
    (model / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match=r"model.path \(model.safetensors\) changed after this run began.*run_id="):
        start(config)
    config = begun("run_id=second")
    data.write_text(data.read_text().replace("u3", "v3"))
    with pytest.raises(UserError, match=r"bench\.path changed"):
        start(config)
    code.write_text((ROOT / "examples" / "bench_sums.py").read_text())
    config = composed("algo=eval", "bench=custom", f"bench.path={code}", f"runs_dir={tmp_path / 'runs'}")
    run = RunDirectory.create(config)
    assert run is not None
    run.set_status("completed")
    code.write_text(code.read_text() + "\n")
    capsys.readouterr()
    assert start(config) == 0 and "bench.path: the file has changed" in capsys.readouterr().out


def test_a_run_without_a_result_takes_a_mended_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentrl.runner.start.launch", lambda *_, **__: 0)
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps({"system": f"s{n}", "user": f"u{n}"}) + "\n" for n in range(10)))
    config = compose(["algo=eval", "bench=pairs", f"bench.path={data}", f"runs_dir={tmp_path / 'runs'}"])
    run = RunDirectory.create(config)
    assert run is not None
    run.set_status("failed")
    data.write_text(data.read_text().replace("u3", "v3"))
    assert start(config) == 0
    assert json.loads(run.environment_path.read_text())["data"] == data_hashes(config)
    run.append(run.eval_dir / "after.jsonl", {"id": "a"})
    data.write_text(data.read_text().replace("v3", "u3"))
    with pytest.raises(UserError, match=r"bench\.path changed"):
        start(config)


def test_every_file_that_decides_a_result_is_recorded(tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.txt" for name in ("system_rubric", "user_rubric", "path")}
    for name, file in files.items():
        file.write_text(json.dumps({"system": name, "user": "u"}) + "\n")
    judge = [f"judge.{name}={files[name]}" for name in ("system_rubric", "user_rubric")]
    words = [
        "algo=eval",
        f"model={TINY}",
        "bench=pairs",
        f"bench.path={files['path']}",
        "judge=local",
        f"judge.path={TINY}",
    ]
    found = data_hashes(compose([*words, *judge]))
    assert set(found) == {"bench.path", "judge.system_rubric", "judge.user_rubric", "judge.path", "model.path"}
    assert (
        {"model.safetensors", "config.json", "tokenizer.json"}
        <= found["judge.path"].keys()
        == found["model.path"].keys()
    )
    before = {"model.path": {**found["model.path"], "optimizer.pt": "9 bytes", ".DS_Store": "1 bytes"}}
    assert changed_files(before, found) == []  # nobody reads these
    assert changed_files({"model.path": {"model.safetensors": "9 bytes"}}, found) == ["model.path (model.safetensors)"]


def test_data_that_cannot_be_read_is_no_fault_of_the_disk(tmp_path: Path) -> None:
    import os

    config = composed("algo=eval", "bench=pairs", f"bench.path={tmp_path / 'gone.jsonl'}", f"runs_dir={tmp_path}")
    with pytest.raises(UserError, match=r"bench\.path=.*gone\.jsonl cannot be read \(No such file or directory\)"):
        RunDirectory.create(config)
    os.mkfifo(tmp_path / "pipe")
    config.bench.path = str(tmp_path / "pipe")
    with pytest.raises(UserError, match="neither a file nor a directory"):
        data_hashes(config)


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ("algo=eval bench=pairs bench.path={dir}", "is a directory; give the file in it"),
        ("algo=eval bench=systemcheck bench.path={dir}", "is a directory; give the file in it"),
        ("algo=eval bench=iheval bench.path={file}", "is a file; give the directory benchmark/"),
        ("algo=hipo bench=realguardrails bench.path={dir} judge=openai judge.model=m", "leaves no row to train on"),
        ("algo=hipo bench=iheval bench.path={dir}", "leaves no row to train on"),
        ("algo=hipo bench=systemcheck bench.train_tasks=0 judge=openai judge.model=m", "leaves no row to train on"),
        ("algo=grpo bench=bfcl bench.test_fraction=1", "leaves no row to train on"),
    ],
)
def test_impossible_paths_and_splits_are_refused_before_a_run(tmp_path: Path, keys: str, reason: str) -> None:
    filled = keys.format(dir=tmp_path, file=write(tmp_path / "x.jsonl", [{"messages": messages(0)}]))
    with pytest.raises(UserError, match=reason):
        validate(composed(*filled.split()))


@pytest.mark.parametrize("bench", ["minihif", *SUITES])
def test_suites_are_no_training_ground_for_tool_methods(tmp_path: Path, bench: str) -> None:
    (tmp_path / "x.jsonl").touch()
    path = [] if bench == "minihif" else [f"bench.path={tmp_path if bench == 'iheval' else tmp_path / 'x.jsonl'}"]
    with pytest.raises(UserError, match="has no tools for algo=grpo"):
        validate(composed("algo=grpo", f"bench={bench}", *path))
    validate(composed("algo=eval", f"bench={bench}", *path))
