"""What a run asks of a chat template: nothing but what its tasks hold."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import composed

from agentrl.benches.base import Task
from agentrl.errors import UserError
from agentrl.models.loading import Needs, load_chat, needs_of

# Of the shape of Phi-3's and Gemma's: no tools in either, and no system role in the second and third.
PHI = (
    "{% for message in messages %}{{'<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{'<|assistant|>\\n'}}{% endif %}"
)
REFUSING = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + PHI
SILENT = "{% for message in messages if message['role'] != 'system' %}{{ message['content'] }}{% endfor %}"
PROMPT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a colour."}]
HIF = Needs(tools=False, system=True)


def with_template(folder: Path, template: str):
    """The configuration of the packaged checkpoint under another template."""
    model = composed().model
    tokenizer = load_chat(model, Needs(tools=True, system=False)).tokenizer
    tokenizer.chat_template, tokenizer.response_template = template, None
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text("{}")
    model.path = str(folder)
    return model


def test_needs_are_read_off_the_tasks():
    tool = {"type": "function", "function": {"name": "look"}}
    assert needs_of([Task("a", PROMPT, [], "", "")]) == HIF
    assert needs_of([Task("a", PROMPT[1:], [], "", ""), Task("b", PROMPT[1:], [tool], "", "")]) == Needs(True, False)


def test_a_single_turn_runs_on_a_template_without_tools(tmp_path: Path):
    model = with_template(tmp_path, PHI)
    chat = load_chat(model, HIF)
    text = chat.tokenizer.decode(chat.prompt_ids(PROMPT, []))
    assert text == "<|system|>\nBe brief.<|end|>\n<|user|>\nName a colour.<|end|>\n<|assistant|>\n"
    with pytest.raises(UserError, match="cannot render tool calls"):
        load_chat(model, Needs(tools=True, system=False))


@pytest.mark.parametrize("template", [REFUSING, SILENT])
def test_a_template_without_a_system_role_is_refused_where_the_bench_has_rules(tmp_path: Path, template: str):
    model = with_template(tmp_path, template)
    with pytest.raises(UserError, match="has no system role"):
        load_chat(model, HIF)
    load_chat(model, Needs(tools=False, system=False))
