"""`model.chat_template`: what is rendered, how calls are read back, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
from peft import get_peft_model
from transformers import AutoTokenizer
from trl import chat_template_utils as trl

from agentrl.chat.format import ChatFormat
from agentrl.chat.reading import TokenReader
from agentrl.chat.templates import use_template
from agentrl.commands import merge, push
from agentrl.config.compose import compose
from agentrl.config.rules import validate
from agentrl.config.templates import trl_templates
from agentrl.core.errors import UserError
from agentrl.models.adapters import lora_config
from agentrl.models.loading import Needs, load_chat, load_model
from agentrl.models.places import checkpoint_path
from agentrl.runner.start import make_paths_absolute
from agentrl.store.run import RunDirectory
from tests.support.helpers import composed

TOOLS = [{"type": "function", "function": {"name": "look", "description": "Look.", "parameters": {"type": "object"}}}]
CALLS = [
    {"type": "function", "function": {"name": "look", "arguments": {"at": "the sky", "n": 2}}},
    {"type": "function", "function": {"name": "look", "arguments": {}}},
]
TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is up?"},
    {"role": "assistant", "content": "I look.", "tool_calls": CALLS},
    {"role": "tool", "content": "blue"},
    {"role": "tool", "content": "grey"},
    {"role": "assistant", "content": "", "tool_calls": CALLS[:1]},
    {"role": "tool", "content": "blue"},
    {"role": "assistant", "content": "Blue."},
    {"role": "user", "content": "Thanks."},
]
BOTH = Needs(tools=True, system=True)


def tokenizer(*marks: str) -> Any:
    """The packaged one, with further special tokens and without a template or a parser."""
    found = AutoTokenizer.from_pretrained(checkpoint_path("builtin:tiny"), padding_side="left")
    found.add_tokens(list(marks), special_tokens=True)
    found.chat_template = found.response_template = None
    return found


def without_chatml(*marks: str) -> Any:
    """Such a tokenizer whose vocabulary lacks ChatML's marks."""
    from tokenizers import Tokenizer

    made = tokenizer(*marks)
    written = json.loads(made.backend_tokenizer.to_str())
    for entry in written["added_tokens"]:
        entry["content"] = entry["content"].replace("<|im_", "<|other_")
    written["model"]["vocab"] = {
        token.replace("<|im_", "<|other_"): n for token, n in written["model"]["vocab"].items()
    }
    made._tokenizer = Tokenizer.from_str(json.dumps(written))
    return made


def read(made: Any, turn: str) -> list[Any]:
    ids = made(turn, add_special_tokens=False)["input_ids"]
    message = TokenReader(made).read(cast(Any, None), ids, [], TOOLS)
    return [message["content"], message.get("tool_calls", [])]


@pytest.mark.parametrize("messages", [TALK[:2], TALK[:3], TALK[:5], TALK], ids=len)
@pytest.mark.parametrize("tools", [[], TOOLS], ids=["plain", "tools"])
def test_chatml_tools_is_qwens_template_where_there_is_a_system_message(messages: Any, tools: Any) -> None:
    ours, theirs = tokenizer(), tokenizer()
    use_template("chatml_tools", ours)
    theirs.chat_template = trl.qwen2_5_chat_template
    for asked in (True, False):
        rendered = [ChatFormat(one, None, "content").text(messages, tools, asked) for one in (ours, theirs)]
        assert rendered[0] == rendered[1]
    assert trl.is_chat_template_prefix_preserving(ours) and trl.supports_tool_calling(ours)


def test_without_a_system_message_it_says_nothing_of_its_own() -> None:
    made = tokenizer()
    use_template("chatml_tools", made)
    chat = ChatFormat(made, None, "content")
    assert chat.text(TALK[1:2], [], True) == "<|im_start|>user\nWhat is up?<|im_end|>\n<|im_start|>assistant\n"
    assert chat.text(TALK[1:2], TOOLS, True).startswith("<|im_start|>system\n# Tools\n\nYou may call")
    assert made.eos_token == "<|im_end|>"


@pytest.mark.parametrize(
    ("marks", "head", "end"),
    [
        (("<start_of_turn>", "<end_of_turn>"), "<start_of_turn>model\n", "<end_of_turn>"),
        (("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"), "<|assistant|>\n", "<|end|>"),
    ],
)
def test_a_model_without_chatmls_marks_gets_its_own(marks: tuple[str, ...], head: str, end: str) -> None:
    made = without_chatml(*marks)
    use_template("chatml_tools", made)
    chat = ChatFormat(made, None, "content")
    text = chat.text(TALK[:3], TOOLS, False)
    assert "<|im_" not in text and text.count(end) == 3 and made.eos_token == end
    assert text.startswith(made.bos_token or "") and chat.text(TALK[:2], TOOLS, True).endswith(head)
    turn = text.partition(head)[2].removesuffix("\n")
    assert read(made, turn) == ["I look.", CALLS]
    made.response_template["fields"]["reasoning_content"] = {"open": "<think>", "close": "</think>", "content": "text"}
    ids, before = (made(part, add_special_tokens=False)["input_ids"] for part in (turn, text.removesuffix(turn + "\n")))
    assert trl.parse_response(made, ids, prefix=before)["tool_calls"] == CALLS


def test_a_model_with_no_known_marks_is_refused() -> None:
    with pytest.raises(UserError, match="the marks neither of ChatML nor of Gemma nor of Phi"):
        use_template("chatml_tools", without_chatml())


def test_a_name_of_trls_takes_its_form_for_training() -> None:
    made = tokenizer()
    use_template("qwen3", made)
    assert made.chat_template == trl.qwen3_training_chat_template != trl.qwen3_chat_template
    assert made.response_template == trl.qwen3_template
    made = tokenizer("<start_of_turn>", "<end_of_turn>")
    use_template("gemma3", made)  # without tools, and so without a parser
    assert made.response_template is None and made.eos_token == "<end_of_turn>"


def test_a_file_gets_the_parser_that_reads_its_calls(tmp_path: Path) -> None:
    made = tokenizer("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|begin_of_text|>")
    (tmp_path / "mine.jinja").write_text("{# mine #}" + trl.llama3_2_chat_template)
    use_template(str(tmp_path / "mine.jinja"), made)
    assert made.response_template == trl.llama3_template and made.eos_token == "<|eot_id|>"
    made = tokenizer()
    made.response_template = trl.qwen3_template
    (tmp_path / "plain.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "<|im_start|>assistant\n"
    )
    use_template(str(tmp_path / "plain.jinja"), made)  # writes no calls: the tokenizer's own parser is not for it
    assert made.response_template is None


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% if %}", "refuses a conversation: Expected an expression.*; correct the template"),
        ("", "leaves out what the user or the assistant says; correct the template"),
        ("hello", "leaves out what the user or the assistant says"),
        (
            "{% for m in messages %}<|turn|>{{ m.content }}<|im_end|>{% endfor %}",
            r"writes <\|turn\|>, no tokens of .*model\.chat_template=chat",
        ),
        (
            "{% for m in messages %}{{ m.role }}: {{ m.content }} END {% endfor %}",
            "ends turns with 'END', which is not",
        ),
    ],
)
def test_a_template_that_cannot_serve_is_one_line(tmp_path: Path, template: str, said: str) -> None:
    (tmp_path / "bad.jinja").write_text(template)
    with pytest.raises(UserError, match=said) as error:
        use_template(str(tmp_path / "bad.jinja"), tokenizer())
    assert "\n" not in str(error.value) and str(tmp_path / "bad.jinja") in str(error.value)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["model.chat_template=chatml"], r"did you mean chatml_tools\?"),
        (["model.chat_template=zzzz"], r"template; choose from chatml_tools, [^;]*$"),
        (["model.chat_template=no/such.jinja"], "neither a Jinja file nor the name of a template"),
        (
            ["algo=eval", "model.chat_template=qwen3", "algo.endpoint.base_url=http://localhost:1/v1"],
            "the server renders",
        ),
    ],
)
def test_a_value_that_means_nothing_is_refused_before_anything_is_loaded(keys: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        validate(composed(*keys))


def test_a_file_that_is_not_jinja_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}\n{{ m.content ")
    with pytest.raises(UserError, match=r"mine\.jinja: line 2 is not Jinja: unexpected.*; correct the file"):
        validate(composed(f"model.chat_template={file}"))
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"mine\.jinja: is not text in UTF-8; give a Jinja file"):
        validate(composed(f"model.chat_template={file}"))
    for shipped in trl_templates().values():  # among them marks of what is trained, and break in loops
        validate(composed(f"model.chat_template={shipped}"))


def test_a_file_is_found_from_anywhere_and_a_name_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine.jinja", "qwen3"):
        (tmp_path / name).write_text("")
    for given, kept in {"mine.jinja": str(tmp_path / "mine.jinja"), "qwen3": "qwen3"}.items():
        config = composed(f"model.chat_template={given}")
        make_paths_absolute(config)
        assert config.model.chat_template == kept


def test_the_template_goes_with_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDirectory.create(composed(f"runs_dir={tmp_path}", "model/lora=on", "model.chat_template=chatml_tools"))
    assert run is not None
    config = run.config().model
    chat, wanted = load_chat(config, BOTH), lora_config(config)
    assert wanted is not None
    get_peft_model(load_model(config), wanted).save_pretrained(run.path / "model")
    chat.save(run.path / "model")
    said = chat.prompt_ids(TALK[1:], TOOLS)
    assert said != load_chat(composed().model, BOTH).prompt_ids(TALK[1:], TOOLS)
    evaluated = compose(["algo=eval", f"model={run.path}"]).model
    assert evaluated.chat_template is None and load_chat(evaluated, BOTH).prompt_ids(TALK[1:], TOOLS) == said
    assert merge.main([str(run.path)]) == 0
    run.write_json(run.summary_path, {"steps": 1, "wall_s": 1.0, "tokens": {"seen": 1}, "eval": {}})
    run.set_status("completed")
    assert push.main([str(run.path), "someone/agent", f"weights={run.path / 'merged'}", "dry_run=true"]) == 0
    for folder in (run.path / "merged", run.path / "hub"):
        found = load_chat(composed("model=custom", f"model.path={folder}").model, BOTH)
        assert found.prompt_ids(TALK[1:], TOOLS) == said
        assert found.tokenizer.response_template == chat.tokenizer.response_template
    shutil.rmtree(run.path)
