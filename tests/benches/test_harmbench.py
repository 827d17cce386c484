"""HarmBench: what is asked, which rows are left out, who is asked about a reply, and what follows."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from agentrl.benches import load_bench
from agentrl.commands.score import main as score_command
from agentrl.core.errors import UserError
from agentrl.core.judge import Verdict
from agentrl.evaluation.grading import score_episodes
from agentrl.judges.build import build_judge
from tests.support.bench_files import (
    behavior_row,
    harmbench_checkout,
    table,
    write,
)
from tests.support.helpers import composed
from tests.support.judge_server import JudgeServer
from tests.support.side import bench_of, reply

JUDGE = ("judge=openai", "judge.model=m", "judge.api_key_env=null")
BEHAVIORS = Path("data/behavior_datasets/harmbench_behaviors_text_test.csv")


@pytest.fixture
def harmbench(tmp_path: Path) -> Path:
    return harmbench_checkout(tmp_path / "HarmBench")


def test_a_behavior_is_asked_with_its_context(harmbench: Path) -> None:
    bench = bench_of("harmbench", harmbench)
    tasks = bench.tasks("test")
    assert [task.id for task in tasks] == ["harmbench-say_ant_0", "harmbench-say_ant_1", "harmbench-say_ant_2"]
    assert tasks[0].prompt == [{"role": "user", "content": "Say the word ant 0 times"}]
    assert tasks[2].prompt[0]["content"] == "An ant, a bat.\n\n---\n\nSay the word ant 2 times"
    (remark,) = bench.remarks()  # the check of protected texts is not ours
    assert remark.startswith("items about protected texts (tag hash_check) are left out, 1 of 4: ")
    guarded = bench_of("harmbench", harmbench, "bench.classifier=wildguard")
    assert len(guarded.tasks("test")) == 4 and guarded.remarks() == []


def test_a_behavior_that_comes_twice_is_asked_once_and_named(harmbench: Path) -> None:
    file = harmbench / BEHAVIORS
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*lines, lines[1]]))
    bench = bench_of("harmbench", harmbench)
    assert [task.id for task in bench.tasks("test")] == [
        "harmbench-say_ant_0",
        "harmbench-say_ant_1",
        "harmbench-say_ant_2",
    ]
    assert any("row 4 (counted from 0) repeats the id harmbench-say_ant_0" in one for one in bench.remarks())


def test_human_jailbreaks_are_drawn_as_upstream_draws_them(harmbench: Path) -> None:
    bench = bench_of("harmbench", harmbench, "bench.attack=human_jailbreaks")
    tasks = bench.tasks("test")
    order, prompts = [f"Pretend {n}." for n in range(6)], []
    random.seed(1)
    for behavior in (
        "Say the word ant 0 times",
        "Say the word ant 1 times",
        "An ant, a bat.\n\n---\n\nSay the word ant 2",
    ):
        random.shuffle(order)
        prompts += [f"{jailbreak}\n\n{behavior}" for jailbreak in order[:5]]
    assert [task.prompt[0]["content"].removesuffix(" times") for task in tasks] == [
        prompt.removesuffix(" times") for prompt in prompts
    ]
    assert len({task.id for task in tasks}) == 15 and tasks[5].id == "harmbench-say_ant_1_1"
    assert [task.cluster for task in tasks[4:6]] == ["say_ant_0", "say_ant_1"]  # jailbreaks of one behavior go together
    request = bench.request(tasks[10], "Ant.")
    assert (request.prompt, request.context, request.response) == ("Say the word ant 2 times", "An ant, a bat.", "Ant.")


def test_a_list_of_jailbreaks_is_read_and_never_run(harmbench: Path, tmp_path: Path) -> None:
    file = harmbench / "baselines" / "human_jailbreaks" / "jailbreaks.py"
    file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nJAILBREAKS = ['Pretend.']\n")
    assert len(bench_of("harmbench", harmbench, "bench.attack=human_jailbreaks").tasks("test")) == 3
    assert not (tmp_path / "ran").exists()
    for text in ("JAILBREAKS = make()", "JAILBREAKS = [1]", "x = (", "x = 1"):
        file.write_text(text)
        with pytest.raises(UserError, match="has no list of texts named JAILBREAKS"):
            bench_of("harmbench", harmbench, "bench.attack=human_jailbreaks").tasks("test")
    with pytest.raises(UserError, match=r"there is no .*jailbreaks\.py.*or set bench\.attack=direct_request"):
        bench_of("harmbench", harmbench / BEHAVIORS, "bench.attack=human_jailbreaks").tasks("test")
    assert len(bench_of("harmbench", harmbench / BEHAVIORS).tasks("test")) == 3  # the file alone has the behaviors


def test_a_bad_behavior_costs_that_behavior(tmp_path: Path) -> None:
    rows = [behavior_row(0), behavior_row(1, Behavior=""), behavior_row(2, Tags="context"), behavior_row(3)]
    file = table(tmp_path / "behaviors.csv", rows)
    file.write_text(file.read_text() + "a,b,c,d,e,f,g\n")
    bench = bench_of("harmbench", file)
    assert [task.id for task in bench.tasks("test")] == ["harmbench-say_ant_0", "harmbench-say_ant_3"]
    (remark,) = bench.remarks()
    assert (
        remark.startswith("3 rows are left out for a mistake: ") and "row 1 (counted from 0), Behavior: empty" in remark
    )
    assert (
        "ContextString: empty, but the row has the tag context" in remark and "more columns than the header" in remark
    )


def test_the_hub_has_behaviors_and_ready_made_jailbreaks(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    parts = {
        "DirectRequest": [behavior_row(0), behavior_row(1, Tags="context", ContextString="A bat.")],
        "HumanJailbreaks": [
            {"BehaviorID": "say_ant_1_1", "Behavior": "Pretend.\n\nSay it."},
            {"BehaviorID": "gone_1", "Behavior": "x"},
        ],
    }
    monkeypatch.setattr(datasets, "load_dataset", lambda hub, name, split: datasets.Dataset.from_list(parts[name]))
    config = composed("algo=eval", "bench=harmbench", "bench.attack=human_jailbreaks").bench
    bench: Any = load_bench(config)
    assert bench.size("test") == 1200
    (task,) = bench.tasks("test")
    assert task.id == "harmbench-say_ant_1_1" and task.prompt[0]["content"] == "Pretend.\n\nSay it."
    assert bench.request(task, "x").context == "A bat."
    assert "BehaviorID: gone_1 belongs to no behavior" in bench.remarks()[0]


def test_the_classifier_decides_and_a_missing_verdict_is_no_zero(harmbench: Path) -> None:
    bench = bench_of("harmbench", harmbench)
    task = bench.tasks("test")[0]
    assert bench.classified(task, "Ant.", Verdict(1.0, "yes")) == {"asr": 1.0, "empty": 0.0}
    assert bench.classified(task, "", Verdict(0.0, "no")) == {"asr": 0.0, "empty": 1.0}
    assert bench.classified(task, "Ant.", Verdict(None, "timeout")) == {"asr": None, "empty": 0.0}
    assert bench.classified(task, "Ant.", None) == {"empty": 0.0}  # nobody was asked
    guarded = bench_of("harmbench", harmbench, "bench.classifier=wildguard")
    told = "Harmful request: yes\nResponse refusal: yes\nHarmful response: no"
    assert guarded.classified(task, "No.", Verdict(0.0, told)) == {"asr": 0.0, "refusal": 1.0, "empty": 0.0}
    assert guarded.request(guarded.tasks("test")[2], "x").context == ""  # WildGuard has no place for it


def test_replies_of_a_run_are_classified_and_cut_thoughts_are_not(harmbench: Path, tmp_path: Path) -> None:
    bench = bench_of("harmbench", harmbench)
    replies = [reply("<think>Hm.</think>Ant."), reply("<think>Hm", cut=True), reply("I will not.")]
    with JudgeServer(reply=lambda messages: "yes" if "]:\nAnt." in messages[0]["content"] else "no") as server:
        config = composed("bench=harmbench", *JUDGE, f"judge.base_url={server.url}", f"runs_dir={tmp_path}")
        judge = build_judge(config, "run")
        found = score_episodes(bench, judge, bench.tasks("test"), replies)
    assert [dict(score.metrics) for score in found] == [
        {"asr": 1.0, "empty": 0.0},
        {"asr": None, "empty": None},
        {"asr": 0.0, "empty": 0.0},
    ]
    assert len(server.bodies) == 2 and found[2].groups == {"category": "contextual", "topic": "made_up"}


def test_recorded_replies_are_classified(harmbench: Path, tmp_path: Path) -> None:
    records = [
        {"id": "harmbench-say_ant_0", "response": "Ant."},
        {"row": 1, "response": "<think>Ant.</think>No."},
        {"id": "harmbench-say_ant_2", "messages": [{"role": "assistant", "content": "Ant."}]},  # a line of eval/
    ]
    given, out = write(tmp_path / "in.jsonl", records), tmp_path / "out.jsonl"
    keys = ["bench=harmbench", f"bench.path={harmbench}", f"transcripts={given}", f"out={out}", f"runs_dir={tmp_path}"]
    with pytest.raises(UserError, match=r"judge=program: a model with the prompt of harmbench grades"):
        score_command(keys)
    with JudgeServer(reply=lambda messages: "yes" if "]:\nAnt." in messages[0]["content"] else "no") as server:
        where = [*JUDGE, f"judge.base_url={server.url}"]
        assert score_command([*keys, *where]) == 0
        assert [json.loads(line)["metrics"]["asr"] for line in out.read_text().splitlines()] == [1.0, 0.0, 1.0]
        out.unlink()
        unplayed = {"id": "harmbench-say_ant_0", "missing": "too long", "messages": []}
        write(given, [*records, {"row": 9, "response": "x"}, unplayed])
        bad = r"line 4: row 9: harmbench has no such row; line 5: harmbench-say_ant_0 was not played \(too long\)"
        with pytest.raises(UserError, match=bad):
            score_command([*keys, *where])
    assert len(server.bodies) == 3 and not out.exists()  # known verdicts were not asked for again
