"""judge=embedding: the similarity of request and reply, and what it must not be asked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from agentrl.core.errors import UserError
from agentrl.core.judge import JudgeRequest
from agentrl.judges.build import build_judge
from agentrl.judges.embedding import SimilarityJudge
from agentrl.models.encoder import SentenceEncoder
from tests.support.helpers import composed
from tests.support.minilm import minilm_path, small_encoder


def judge_at(folder: Path) -> SimilarityJudge:
    judge = build_judge(composed("judge=embedding", f"judge.path={folder}", "judge.batch=2"), "run")
    assert isinstance(judge, SimilarityJudge)
    return judge


def scores(judge: SimilarityJudge, prompt: str, *replies: str) -> list[float | None]:
    return [verdict.score for verdict in judge.score([JudgeRequest("user", prompt, reply) for reply in replies])]


def test_the_score_is_the_cosine_without_its_negative_half(tmp_path: Path) -> None:
    judge = judge_at(small_encoder(tmp_path))
    replies = ["a dog sits", "stock falls .", "cat", "a dog sits", "runs runs runs"]
    found = scores(judge, "a cat sits", *replies)
    vectors = SentenceEncoder(str(tmp_path), "judge.path").encode(["a cat sits", *replies])
    cosines = vectors[1:] @ vectors[0]
    assert found == pytest.approx(cosines, abs=1e-6)
    assert min(cosines) > 0
    assert found[0] == found[3]
    judge._requests["a cat sits"] *= -1
    assert scores(judge, "a cat sits", *replies) == [0.0] * 5


def test_copies_of_the_request_and_blank_replies_earn_nothing(tmp_path: Path) -> None:
    judge = judge_at(small_encoder(tmp_path))
    copied, blank, more, alone = scores(judge, "a cat sits ", "a cat sits", " \n", "a cat sits dog runs", "dog runs")
    assert copied == blank == 0
    assert more == pytest.approx(alone, abs=1e-6)


def test_a_run_that_goes_on_gets_the_same_scores(tmp_path: Path) -> None:
    folder = small_encoder(tmp_path)
    judge, again = judge_at(folder), judge_at(folder)
    scores(judge, "a cat sits", "dog", "cat runs")
    assert scores(judge, "a cat sits", "dog falls", "cat .") == scores(again, "a cat sits", "dog falls", "cat .")
    assert judge.counts() == {"verdicts": 4, "cached": 2, "missing": 0}


def test_it_does_not_grade_the_system_side(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot grade r_sys; choose judge=openai"):
        judge_at(small_encoder(tmp_path)).score([JudgeRequest("system", "Be brief.", "Yes.")])


def test_a_reply_on_the_topic_beats_one_beside_it() -> None:
    judge = judge_at(minilm_path())
    request = "How do I keep my bread fresh for longer?"
    near, refusal, far = scores(
        judge,
        request,
        "Store the loaf in a paper bag or freeze it in slices.",
        "I am sorry, but I cannot help with that.",
        "The stock market fell sharply on Monday.",
    )
    assert near is not None and refusal is not None and far is not None
    assert near > 0.3 and near > refusal + 0.2 and near > far + 0.2


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["hipo", "eval"])
def test_a_suite_without_r_user_gets_it_from_the_encoder(tmp_path: Path, algo: str) -> None:
    constraint = {"func_name": "verify_bullet_points", "N": 2, "quantifier": None}
    rows = [
        {
            "sys_prompt": f"Use two bullet points. {n}",
            "user_prompt": f"a cat {n}",
            "gt": json.dumps(constraint),
            "type": kind,
        }
        for n in range(10)
        for kind in ("x:conflict", "x:aligned")
    ]
    (tmp_path / "test.json").write_text(json.dumps(rows))
    train = ["trainer.max_steps=2", "trainer.prompts_per_batch=4", "trainer.minibatch_prompts=4", "algo.kl_coef=0"]
    keys = [f"algo={algo}", "bench=verih", f"bench.path={tmp_path / 'test.json'}", "model=tiny_hif", "eval.limit=4"]
    keys += ["hardware.threads=1", "rollout.max_completion_tokens=8", "rollout.max_prompt_tokens=200"]
    keys += [f"runs_dir={tmp_path / 'runs'}", "judge=embedding", f"judge.path={small_encoder(tmp_path / 'encoder')}"]
    command = [sys.executable, "-m", "agentrl", *keys, *(train if algo == "hipo" else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = (tmp_path / "runs").glob("*/*/summary.json")
    after = json.loads(file.read_text())["eval"]["after"]
    assert after["r_user"]["n"] == 4 and 0 <= after["r_user"]["mean"] <= 1
    if algo == "hipo":
        metrics = [json.loads(line) for line in (file.parent / "metrics.jsonl").read_text().splitlines()]
        assert {"r_user", "r_sys", "lambda/sys"} <= set(metrics[-1]) and "user_proxy" not in metrics[-1]
