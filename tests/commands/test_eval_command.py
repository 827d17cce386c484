"""agentrl eval: what model= may name, several benches at once, and an endpoint compared with in-process decoding."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from agentrl.benches.toolhop_rows import divide
from agentrl.commands.eval import compose_job
from agentrl.commands.eval import main as eval_command
from agentrl.config.benches import BFCL_GROUPS
from agentrl.config.compose import compose
from agentrl.config.inherit import bench_of
from agentrl.config.rules import validate
from agentrl.config.target import resolve_model
from agentrl.core.errors import UserError
from agentrl.report.markdown import markdown_table
from agentrl.report.published import published_table
from agentrl.runner.start import start
from agentrl.store.identity import run_path
from tests.support.chat_server import ChatServer, Reply, completion, said
from tests.support.servers import serving
from tests.support.toolhop_rows import rows as toolhop_rows

TINY = Path(str(files("agentrl.tiny") / "tiny"))
SMALL = ("eval.limit=10", "rollout.max_turns=6", "hardware.threads=1")


def agentrl(*arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "agentrl", "eval", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


# --- what model= means ----------------------------------------------------------------------------------------------


def model_of(name: str) -> Any:
    return compose([f"model={name}"]).model


def test_model_names_presets_hub_ids_and_directories(tmp_path: Path) -> None:
    assert resolve_model("qwen3-4b") == "qwen3-4b"
    assert model_of("Qwen/Qwen3-4B") == model_of("qwen3-4b")  # a preset says more about the model than its id
    hub = model_of("someone/agent-7b")
    assert (hub.name, hub.path, hub.family) == ("someone--agent-7b", "someone/agent-7b", "other")
    shutil.copytree(TINY, tmp_path / "mine")
    local = model_of(str(tmp_path / "mine"))
    assert (local.name, local.path, local.family) == ("mine", str(tmp_path / "mine"), "qwen3")  # by its config.json


def test_a_run_directory_names_its_model_and_lists_its_checkpoints(tmp_path: Path) -> None:
    run = tmp_path / "minihop-tiny-pact" / "s0-12345678"
    for folder in ("model", "checkpoints/checkpoint-4"):
        (run / folder).mkdir(parents=True)
        (run / folder / "config.json").write_text("{}")
    (run / "status.json").write_text("{}")
    (run / "config.yaml").write_text(
        "model: {family: tiny, reasoning: content, dtype: float32, attn_implementation: sdpa}"
    )
    trained = model_of(str(run))
    assert (trained.path, trained.family) == (str(run / "model"), "tiny")
    assert model_of(str(run / "model")) == trained
    earlier = model_of(str(run / "checkpoints" / "checkpoint-4"))
    assert (earlier.name, earlier.family) == ("minihop-tiny-pact-s0-12345678-checkpoint-4", "tiny")
    shutil.rmtree(run / "model")
    with pytest.raises(UserError, match="has no trained model yet"):
        resolve_model(str(run))


@pytest.mark.parametrize("name", ["qwen9", "./absent", "/absent/model", "runs/no/where", "owner/", "/"])
def test_an_unknown_model_name_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"is neither a preset|config.json") as caught:
        resolve_model(name)
    assert name == "qwen9" or "qwen3-4b" not in str(caught.value)  # presets are not suggested for a path


def test_a_web_address_is_not_a_hub_id() -> None:
    with pytest.raises(UserError, match=r"did you mean Qwen/Qwen3-4B\?"):
        resolve_model("https://huggingface.co/Qwen/Qwen3-4B/")


# --- the command ----------------------------------------------------------------------------------------------------


def test_a_key_of_one_bench_reaches_only_that_bench() -> None:
    arguments = ["+custom.options.tasks=4", "minihop.test_tasks=7", "custom.path=mine.py", "seed=2"]
    custom, minihop = (
        compose_job("tiny", bench, {}, arguments, ["custom", "minihop"], ["tiny"]) for bench in ("custom", "minihop")
    )
    assert (custom.bench.path, custom.bench.options, custom.seed) == ("mine.py", {"tasks": 4}, 2)
    assert (minihop.bench.test_tasks, minihop.seed) == (7, 2)


def trained(tmp_path: Path, *overrides: str) -> str:
    """Make the directory of a run with the tiny model in it; return its path."""
    config = compose([f"runs_dir={tmp_path}", "dry_run=true", *overrides])
    assert start(config) == 0
    run = run_path(config)
    shutil.copytree(TINY, run / "model")
    return str(run)


def test_all_models_play_the_tasks_of_the_run_with_its_judge(tmp_path: Path) -> None:
    data = tmp_path / "a, b.jsonl"
    data.write_text("".join(json.dumps({"system": f"s{i}", "user": f"u{i}"}) + "\n" for i in range(60)))
    judge = ["judge=openai", "judge.model=m", "judge.base_url=http://localhost:1/v1"]
    run = trained(tmp_path, "algo=hipo", "bench=pairs", f"bench.path={data}", "bench.data_seed=7", *judge)
    assert bench_of([run, "tiny"]) == "pairs"
    for model in (run, "tiny"):
        job = compose_job(model, "pairs", {}, [], ["pairs"], [run, "tiny"])
        assert (job.bench.path, job.bench.data_seed) == (str(data), 7), model  # type: ignore[attr-defined]
        assert (job.judge.name, job.judge.model) == ("openai", "m")  # type: ignore[union-attr]
    typed = compose_job(run, "pairs", {}, ["bench.data_seed=1", "judge=program"], ["pairs"], [run])
    assert (typed.bench.data_seed, typed.judge.name) == (1, "program")  # type: ignore[attr-defined]
    elsewhere = compose_job(run, "minihif", {}, [], ["minihif"], [run])
    assert (elsewhere.bench.data_seed, elsewhere.judge.name) == (0, "program")  # type: ignore[attr-defined]


def test_the_users_own_bench_is_played_with_its_options(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text((Path(__file__).parents[2] / "examples" / "bench_sums.py").read_text())
    run = trained(tmp_path, "algo=grpo", "bench=custom", f"bench.path={file}", "+bench.options.tasks=40")
    said = "it's 3, in English"  # as a file of --config-dir may give it
    config = OmegaConf.load(Path(run) / "config.yaml")
    config.bench.options.said, config.bench.options.number = said, "3"
    OmegaConf.save(config, Path(run) / "config.yaml")
    job = compose_job("tiny", "custom", {}, [], ["custom"], [run, "tiny"])
    assert (job.bench.path, job.bench.options) == (str(file), {"tasks": 40, "said": said, "number": "3"})  # type: ignore[attr-defined]


def test_runs_with_other_tasks_are_refused_until_the_user_chooses(tmp_path: Path) -> None:
    runs = [trained(tmp_path, "algo=grpo", f"bench.data_seed={seed}") for seed in (0, 3)]
    with pytest.raises(UserError, match=r"bench.data_seed differs between the runs \(0 in .*, 3 in .*bench.data_seed="):
        compose_job("tiny", "minihop", {}, [], ["minihop"], runs)
    chosen = compose_job("tiny", "minihop", {}, ["minihop.data_seed=3"], ["minihop"], runs)
    assert chosen.bench.data_seed == 3  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="different benches"):
        bench_of([runs[0], trained(tmp_path, "algo=hipo", "bench=minihif", "model=tiny_hif")])


def test_a_model_that_was_trained_on_another_division_of_the_data_is_warned_of(tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps({"system": f"s{i}", "user": f"u{i}"}) + "\n" for i in range(60)))
    judged = ["bench=pairs", f"bench.path={data}", "judge=openai", "judge.model=m", "judge.api_key_env=null"]
    first = trained(tmp_path, "algo=hipo", *judged, "bench.data_seed=7")
    second = trained(tmp_path, "algo=hipo", *judged, "bench.data_seed=7", f"model={first}")
    for model in (first, second):  # and so are runs that go on from it
        (warning,) = validate(compose(["algo=hipo", *judged, f"model={model}"]))
        assert "was trained with bench.data_seed=7, and here it is 0" in warning and "set bench.data_seed=7" in warning
    assert not validate(compose(["algo=hipo", *judged, f"model={second}", "bench.data_seed=7"]))
    other = tmp_path / "more.jsonl"
    shutil.copy(data, other)
    seeded = ["algo=hipo", *judged, f"model={second}", "bench.data_seed=7"]
    (warning,) = validate(compose([*seeded, f"bench.path={other}"]))
    assert f"bench.path={data}, and here it is {other}" in warning
    generated = trained(tmp_path, "algo=grpo", "bench.data_seed=3")
    assert not validate(compose(["algo=grpo", f"model={generated}"]))  # tasks of another seed are new tasks


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["suite=ppo"], "suite=ppo is not a choice"),
        (["suite=pact", "bench=ftrl"], "names the benches itself"),
        (["bench=minihop", "toolhop.path=x"], "toolhop is not among the benches evaluated"),
        *(
            (["endpoint=" + url, "model=m"], "must begin with http")
            for url in ("localhost:8000", "http://", "http://a:b/v1")
        ),
        (["eval.before=true"], "evaluates once"),
        (["algo=pact"], "algo=pact trains"),
        (["out=table.pdf"], "out=table.pdf: must end in .md, .tex or .csv"),
    ],
)
def test_mistakes_name_the_key(arguments: list[str], reason: str, tmp_path: Path, capsys: Any) -> None:
    try:
        code, text = eval_command([*arguments, f"runs_dir={tmp_path}"]), capsys.readouterr().err
    except UserError as error:
        code, text = 2, str(error)
    assert code == 2 and reason in text
    assert not list(tmp_path.glob("*/*/status.json"))


def test_a_papers_table_shows_our_row_below_the_published_rows(tmp_path: Path) -> None:
    def summary(name: str, **content: Any) -> Path:
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(json.dumps(content))
        return tmp_path / name

    def cells(**means: float) -> dict[str, dict[str, float]]:
        return {metric: {"mean": mean} for metric, mean in means.items()}

    scores = {"multi_turn": (0.2, 0.1, 0.2, 0.1), "web_search": (0.3, 0.3), "memory": (0.4, 0.2, 0.3)}
    categories = {
        name: score for group, own in scores.items() for name, score in zip(BFCL_GROUPS[group], own, strict=True)
    }
    runs = {
        "ftrl": summary("ftrl", eval={"after": cells(solve_r=0.4, solve_p=0.3, solve_f1=0.35)}),
        "toolhop": summary("toolhop", eval={"after": cells(answer_correct=0.5)}),
        "bfcl": summary("bfcl", by={"category": {k: {"after": cells(solved=v)} for k, v in categories.items()}}),
    }
    table = published_table("pact", "qwen3-4b", runs)
    lines = markdown_table(table.head, table.rows).splitlines()
    # multi-turn (20 + 10 + 20 + 10) / 4, search 30, memory (40 + 20 + 30) / 3: the average is 25
    # and that of all is (40 + 30 + 35 + 25 + 50) / 5
    assert lines[-1].split("|")[2:-1] == [
        f" {v} ".ljust(len(c)) for v, c in zip(
            ("40.00", "30.00", "35.00", "15.00", "30.00", "30.00", "25.00", "50.00", "36.00"),
            lines[-1].split("|")[2:-1], strict=True,
        )
    ]  # fmt: skip
    assert "| PACT " in lines[-2] and "42.41" in lines[-2]
    assert "–" in published_table("pact", "tiny", {"ftrl": runs["ftrl"]}).rows[-1]
    del categories["memory_vector"]  # its encoder was missing: an average of the others is not the paper's
    content = {"by": {"category": {k: {"after": cells(solved=v)} for k, v in categories.items()}}, "too_long": 7}
    table = published_table("pact", "qwen3-4b", {**runs, "bfcl": summary("less", **content)})
    assert table.rows[-1][5:8] == ["30.00", "–", "–"] and table.rows[-1][9] == "–"
    assert "BFCL lacks memory_vector" in table.title and "bfcl lacks 7 items with too long a prompt" in table.title


def test_a_papers_suite_plays_all_its_items_by_the_papers_rule(tmp_path: Path) -> None:
    own = {"suite": "pact"}
    job = compose_job("tiny", "toolhop", own, [], ["toolhop"], ["tiny"])
    assert (job.bench.rule, job.bench.test_fraction) == ("ftrl", 1)  # type: ignore[attr-defined]
    data = tmp_path / "ToolHop.json"
    data.write_text(json.dumps([row | {"id": n} for n, row in enumerate(toolhop_rows() * 20)]))
    run = trained(tmp_path, "algo=grpo", "bench=toolhop", f"bench.path={data}", "bench.data_seed=4", "dry_run=true")
    job = compose_job(run, "toolhop", own, [], ["toolhop"], [run])  # the run's division, the paper's rule
    assert (job.bench.rule, job.bench.test_fraction, job.bench.data_seed) == ("ftrl", 0.2, 4)  # type: ignore[attr-defined]
    typed = compose_job("tiny", "toolhop", own, ["toolhop.test_fraction=0.5"], ["toolhop"], ["tiny"])
    assert typed.bench.test_fraction == 0.5  # type: ignore[attr-defined]
    parts = divide(list(range(5)), 1, 0)  # type: ignore[arg-type]
    assert len(parts["test"]) == 5 and not parts["train"]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The address of transformers' own server with the tiny model."""
    pytest.importorskip("fastapi")
    command = [str(Path(sys.executable).parent / "transformers"), "serve", str(TINY)]
    with serving([*command, "--device", "cpu", "--dtype", "float32"], tmp_path, patience=120) as url:
        yield url


def items(runs: Path, model: str) -> dict[str, Any]:
    (file,) = runs.glob(f"minihop-{model}-eval/*/eval/after.jsonl")
    return {item["id"]: item for item in map(json.loads, file.read_text().splitlines())}


@pytest.mark.slow
def test_an_endpoint_agrees_with_greedy_decoding_in_process(served: str, tmp_path: Path) -> None:
    local = agentrl("model=tiny", f"runs_dir={tmp_path}", *SMALL)
    limits = ("rollout.max_completion_tokens=512", "rollout.max_turn_tokens=64", "algo.endpoint.history=text")
    remote = agentrl(f"endpoint={served}", f"model={TINY}", f"runs_dir={tmp_path}", *SMALL, *limits)
    assert local.returncode == remote.returncode == 0, local.stderr + remote.stderr
    here, there = items(tmp_path, "tiny"), items(tmp_path, "*tiny--tiny")
    assert len(here) == 10 and here.keys() == there.keys()
    assert any(item["calls"] for item in here.values())
    for name, item in here.items():
        for key in ("messages", "metrics", "calls", "tool_errors", "truncated", "turns", "tokens"):
            assert item[key] == there[name][key], (name, key)


@pytest.mark.slow
def test_models_are_compared_item_by_item_and_items_are_not_played_twice(tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path / "copy")
    arguments = (
        f"model=tiny,{tmp_path / 'copy'}",
        f"runs_dir={tmp_path / 'runs'}",
        "samples=2",
        "temperature=1",
        *SMALL,
    )
    first = agentrl(*arguments)
    assert first.returncode == 0, first.stderr
    assert "| pass@2 " in first.stdout and "| metric" in first.stdout
    (row,) = (line for line in first.stdout.splitlines() if line.startswith("| solve_rate"))
    assert row.count("[") == 3  # two models and their difference
    file = next((tmp_path / "runs").glob("minihop-tiny-eval/*/eval/after.jsonl"))
    lines = file.read_text().splitlines(keepends=True)
    assert len(lines) == 20
    # This is what a kill leaves: half of the items, a torn line, no summary.
    file.write_text("".join(lines[:9]) + lines[9][:50])
    (file.parents[1] / "summary.json").unlink()
    status = file.parents[1] / "status.json"
    status.write_text(status.read_text().replace("completed", "running"))
    again = agentrl(*arguments)
    assert again.returncode == 0, again.stderr
    assert file.read_text().splitlines(keepends=True)[:9] == lines[:9]
    assert len({(json.loads(line)["id"], json.loads(line)["sample"]) for line in file.read_text().splitlines()}) == 20


@pytest.mark.slow
def test_items_that_a_server_does_not_play_are_counted_and_tried_again(tmp_path: Path) -> None:
    first: list[str] = []

    def respond(body: dict[str, Any], _: int) -> Any:
        question = next(message["content"] for message in body["messages"] if message["role"] == "user")
        first.append(question)
        if "min_p" in body:
            return Reply({"error": {"message": "Unrecognized request argument supplied: min_p"}}, 400)
        if question == first[0] and not well:
            return Reply({"error": {"message": "This model's maximum context length is 9 tokens."}}, 400)
        return completion(said("<answer>nobody</answer>"))

    well = False
    with ChatServer(respond) as server:
        command = (f"endpoint={server.url}", "model=m", "bench=minihop", "eval.limit=4", f"runs_dir={tmp_path}")
        done = agentrl(*command, f"out={tmp_path / 'table.md'}")
        assert done.returncode == 0, done.stderr
        assert (
            "1 items are missing, and the same command tries them again. 1 times: HTTP 400: This model" in done.stdout
        )
        assert "it refuses and chooses itself: min_p" in done.stdout
        assert (tmp_path / "table.md").read_text().startswith("minihop: 3 items, m lacks 1, mean")
        (summary,) = tmp_path.glob("*/*/summary.json")
        told = json.loads(summary.read_text())
        assert told["missing"]["items"] == 1 and "context length" in next(iter(told["missing"]["reasons"]))
        assert told["sampling"]["sent"] == {"temperature": 0, "top_p": 1, "top_k": -1, "repetition_penalty": 1}
        well, asked = True, len(server.bodies)
        again = agentrl(*command)
        assert (
            "1 items are missing and will be tried again" in again.stdout and "minihop: 4 items, mean" in again.stdout
        )
        assert "missing" not in json.loads(summary.read_text()) and len(server.bodies) - asked <= 2
        assert "This run is complete" in agentrl(*command).stdout
