"""model.thinking, and replies that the token budget cuts inside their think block: truncated, and no bad answers."""

from __future__ import annotations

import json
import shutil
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import trl
from transformers import AutoTokenizer

from agentrl.benches import load_bench
from agentrl.benches.hif.base import is_cut_in_thought
from agentrl.chat.reading import TokenReader
from agentrl.chat.trace_messages import turn_messages
from agentrl.commands.eval import main as eval_command
from agentrl.config.compose import compose
from agentrl.config.rules import validate
from agentrl.config.schema import Model
from agentrl.core.errors import UserError
from agentrl.core.trajectory import Trajectory
from agentrl.evaluation.evaluate import item_record, progress
from agentrl.evaluation.grading import score_episodes
from agentrl.evaluation.results import item_values
from agentrl.models.loading import load_chat, needs_of, thinking_arguments
from tests.support.helpers import composed, make_trainer, rolled_batch, say, work_in_this_process
from tests.support.judge_server import JudgeServer

MODELS = Path(str(files("agentrl.tiny")))
TEMPLATES = Path(trl.__file__).parent / "chat_templates"
SWITCHED = ("diffusion_gemma", "gemma4", "glm4moe", "nemotron_3", "qwen3")  # families with the switch
PLAIN = ("qwen3_instruct", "qwen3_vl")  # and those of their names without it
CLOSED = "<think>\n\n</think>\n\n"  # what Qwen3's template writes for a policy that shall not think


@cache
def some_model() -> Model:
    return composed("bench=minihif").model


def model_of(thinking: str | None) -> Model:
    return some_model().model_copy(update={"thinking": thinking, "path": "some/model"})


def with_template(folder: Path, base: str, template: str) -> str:
    """A packaged checkpoint with a chat template of TRL's."""
    shutil.copytree(MODELS / base, folder)
    shutil.copy(TEMPLATES / template, folder / "chat_template.jinja")
    return str(folder)


# --- the switch -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    loaded = AutoTokenizer.from_pretrained(MODELS / "tiny_hif")
    loaded.bos_token = "<s>"
    return loaded


@pytest.mark.parametrize("file", sorted(TEMPLATES.glob("*.jinja")), ids=lambda file: file.stem)
def test_every_template_follows_the_switch_or_is_refused(file: Path, tokenizer: Any) -> None:
    template = file.read_text(encoding="utf-8")
    assert thinking_arguments(model_of(None), tokenizer, template) == {}
    if not file.stem.startswith(SWITCHED) or file.stem.startswith(PLAIN):
        for value in ("on", "off"):
            with pytest.raises(
                UserError, match=f"model.thinking={value}: the chat template of some/model reads neither"
            ):
                thinking_arguments(model_of(value), tokenizer, template)
        return
    rendered = {}
    for value in ("on", "off"):
        arguments = thinking_arguments(model_of(value), tokenizer, template)
        rendered[value] = tokenizer.apply_chat_template(
            [{"role": "user", "content": "Hello"}],
            chat_template=template,
            tokenize=False,
            add_generation_prompt=True,
            **arguments,
        )
    assert rendered["on"] != rendered["off"]
    if file.stem.startswith("qwen3"):
        assert rendered["off"].endswith(CLOSED) and not rendered["on"].endswith(CLOSED)


def test_the_key_is_a_word_however_yaml_reads_it() -> None:
    assert composed("model.thinking=off").model.thinking == "off"  # YAML's own: False
    assert compose(["model.thinking=on"]).model.thinking == "on"
    assert compose([]).model.thinking is None
    with pytest.raises(UserError, match=r"model\.thinking=maybe is not a choice"):
        validate(composed("model.thinking=maybe"))


def test_rollouts_and_traces_are_rendered_without_thinking(tmp_path: Path) -> None:
    path = with_template(tmp_path / "hif", "tiny_hif", "qwen3.jinja")
    small = ("trainer.prompts_per_batch=2", "trainer.minibatch_prompts=2", "rollout.num_generations=2")
    keys = ("algo=hipo", f"model.path={path}", *small, "bench.train_tasks=4", "algo.kl_coef=0")
    for thinking, end in (("off", CLOSED), ("on", "assistant\n"), ("null", "assistant\n")):
        trainer = make_trainer(
            composed(*keys, f"model.thinking={thinking}"), tmp_path / thinking, lambda task, sample, turn: "sure ant"
        )
        rolled_batch(trainer)
        prompt = trainer.processing_class.decode(trainer._trajectories[0].prompt_ids)
        assert prompt.endswith(end) and (CLOSED in prompt) == (thinking == "off")
    # A tool policy: the expert's reasoning stands in the content, behind the empty block of every turn.
    config = composed("bench.train_tasks=2", "model.reasoning=think", "model.thinking=off")
    config.model.path = with_template(tmp_path / "tools", "tiny", "qwen3.jinja")
    bench = load_bench(config.bench)
    (task, *_) = tasks = bench.tasks("train")
    chat, trace = load_chat(config.model, needs_of(tasks)), bench.expert_trace(task)
    assert trace is not None and chat.reasoning == "content"
    before = chat.text(task.prompt, task.tools, generation_prompt=True)
    said = chat.text([*task.prompt, *turn_messages(trace.turns[0], chat.reasoning)], task.tools, generation_prompt=True)
    assert before.endswith(CLOSED) and said.endswith(CLOSED)
    assert said.startswith(before + trace.turns[0].chunks[0].text)


def test_a_model_without_the_switch_is_refused_when_its_template_is_read() -> None:
    config = composed("bench=minihif", "model.thinking=off")
    with pytest.raises(UserError, match=r"builtin:tiny_hif reads neither.*set model\.thinking=null"):
        load_chat(config.model, needs_of(load_bench(config.bench).tasks("test", 2)))


def test_a_server_is_told_and_a_run_says_it_of_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work_in_this_process(monkeypatch)
    short = ("bench=minihif", "eval.limit=2", "eval.samples=1", f"runs_dir={tmp_path / 'runs'}")
    with JudgeServer(reply=lambda messages: "sure ant") as server:
        assert eval_command([f"endpoint={server.url}", "model=m", *short, "model.thinking=off"]) == 0
        told = [body.get("chat_template_kwargs") for body in server.bodies]
        assert told == [{"enable_thinking": False, "thinking": False}] * 2
        assert eval_command([f"endpoint={server.url}", "model=m", *short]) == 0
        assert all("chat_template_kwargs" not in body for body in server.bodies[2:])
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "config.json").write_text("{}")
    (tmp_path / "run" / "status.json").write_text("{}")
    saved = json.dumps({"model": {"family": "qwen3", "reasoning": "think", "thinking": "off"}})
    (tmp_path / "run" / "config.yaml").write_text(saved)
    assert compose([f"model={tmp_path / 'run'}"]).model.thinking == "off"


# --- cut inside the block -------------------------------------------------------------------------------------------


def trajectory(content: str, truncated: bool, **message: Any) -> Trajectory:
    said = {"role": "assistant", "content": content, **message}
    return Trajectory("a", [], [], [], [], [], [said], truncated=truncated)


CUT = [trajectory("<think>I wonder", True), trajectory("", True, reasoning_content="I wonder")]
GRADED = [
    trajectory("<think>I wonder", False),  # the policy ended its turn without an answer: a bad one
    trajectory("<think>yes</think>sure", True),
    trajectory("sure ant", True),
    trajectory("", True),
    trajectory("", False, reasoning_content="I wonder"),
]


@pytest.mark.parametrize("played", CUT)
def test_a_reply_cut_inside_its_think_block_has_no_metrics_but_is_truncated(played: Trajectory) -> None:
    bench = load_bench(composed("bench=minihif").bench)
    (task,) = bench.tasks("test", 1)
    score = bench.score(task, played)
    assert is_cut_in_thought(played) and score.metrics == {"r_sys": None, "r_user": None, "violation": None}
    whole = bench.score(task, trajectory("sure", False))
    items = [item_record(score, task, 0, played), {**item_record(whole, task, 0, GRADED[1]), "id": "b"}]
    values = item_values(items, "r_sys")
    assert list(values["r_sys"].values()) == [whole.metrics["r_sys"]]  # the mean leaves it out
    assert values["truncated"] == {task.id: 1.0, "b": 1.0}
    assert progress(items[:1], "r_sys") == "" and progress(items, "r_sys") == f"r_sys {whole.metrics['r_sys']:.3f}"


@pytest.mark.parametrize("played", GRADED)
def test_any_other_reply_is_graded(played: Trajectory) -> None:
    bench = load_bench(composed("bench=minihif").bench)
    (task,) = bench.tasks("test", 1)
    assert not is_cut_in_thought(played) and None not in bench.score(task, played).metrics.values()


def test_a_judge_is_not_asked_about_it(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"system": "S", "user": "U", "kind": "aligned"}\n')
    bench = load_bench(composed("algo=eval", "bench=pairs", f"bench.path={file}", "bench.test_fraction=1").bench)
    (task,) = bench.tasks("test")

    class Nobody:
        def score(self, requests: Any) -> Any:
            raise AssertionError("asked")

    (score,) = score_episodes(bench, Nobody(), [task], CUT[:1])  # type: ignore[arg-type]
    assert score.metrics["r_sys"] is None and score.metrics["r_user"] is None and score.metrics["empty"] is None


def test_hipo_learns_nothing_from_it_and_counts_it_apart(tmp_path: Path) -> None:
    keys = ("trainer.prompts_per_batch=2", "trainer.minibatch_prompts=2", "rollout.num_generations=4")
    config = composed("algo=hipo", *keys, "bench.train_tasks=4", "algo.kl_coef=0")
    texts = ("sure ant", "<think>I wonder", "well bat", "okay cat")
    trainer = make_trainer(config, tmp_path, lambda task, sample, turn: texts[sample])
    scripted, end = trainer.engine.sampler, trainer.processing_class.eos_token_id

    def cut(request: Any, turn: int) -> list[int]:
        ids = scripted.sample([request])[request.episode].ids
        return [token for token in ids if token != end] if request.episode % 4 == 1 else ids

    say(trainer, cut)
    batch = rolled_batch(trainer)
    for row, rewards in enumerate(trainer._rewards):
        assert (rewards == {"user": None, "sys": None}) == (row % 4 == 1)
    assert [t.truncated for t in trainer._trajectories] == [False, True, False, False] * 2
    assert (batch["advantages"][1::4] == 0).all()
    logged = trainer._metrics["train"]
    assert (logged["cut_in_thought"], logged["missing/sys"], logged["filtered"]) == ([0.25], [0.0], [0.0])


@pytest.mark.parametrize(("prompt", "content"), [("assistant\n<think>\n", "<think>so"), ("assistant\n", "so")])
def test_a_block_that_the_prompt_opened_belongs_to_the_reply(prompt: str, content: str, tokenizer: Any) -> None:
    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    message = TokenReader(tokenizer).read(None, ids("so"), ids(prompt), [])  # type: ignore[arg-type]
    assert message == {"role": "assistant", "content": content}
