"""What a run asks of a chat template: nothing but what its tasks hold."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from agentrl.core.bench import Task
from agentrl.core.errors import UserError
from agentrl.models.loading import Needs, load_chat, load_model, needs_of
from agentrl.models.places import checkpoint_path
from agentrl.runner import doctor
from tests.support.helpers import composed

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


def test_turns_end_with_the_templates_token_if_the_model_declares_another_only(tmp_path: Path) -> None:
    """A base model: the chat template ends turns with <|im_end|>, the end token is that of texts."""
    model = composed().model
    plain = load_chat(model, HIF).tokenizer
    plain.eos_token = "<|tool|>" if "<|tool|>" in plain.get_vocab() else plain.convert_ids_to_tokens(0)
    plain.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    model.path = str(tmp_path)
    assert load_chat(model, HIF).tokenizer.eos_token == "<|im_end|>"
    ends = [plain.eos_token_id, plain.convert_tokens_to_ids("<|im_end|>")]
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    assert load_chat(model, HIF).tokenizer.eos_token == plain.eos_token  # as Gemma 3, which stops at both


def test_a_template_that_writes_todays_date_writes_a_fixed_one(tmp_path: Path) -> None:
    dated = "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    chat = load_chat(with_template(tmp_path, dated + "{{ date_string }}" + PHI), HIF)
    text = chat.text(PROMPT, [], generation_prompt=True)
    assert text.startswith("26 Jul 2024<|system|>") and "date_string" not in load_chat(composed().model, HIF).arguments


@pytest.mark.parametrize("template", [REFUSING, SILENT])
def test_a_template_without_a_system_role_is_refused_where_the_bench_has_rules(tmp_path: Path, template: str):
    model = with_template(tmp_path, template)
    with pytest.raises(UserError, match="has no system role"):
        load_chat(model, HIF)
    load_chat(model, Needs(tools=False, system=False))


TOOL = [{"type": "function", "function": {"name": "look", "description": "Look.", "parameters": {"type": "object"}}}]


def checkpoint(folder: Path, **network: int):
    """The packaged checkpoint with another tokenizer to come, and keys of its network's configuration changed."""
    source = Path(checkpoint_path("builtin:tiny"))
    shutil.copytree(source, folder)
    config = json.loads((source / "config.json").read_text()) | network
    (folder / "config.json").write_text(json.dumps(config))
    model = composed().model
    model.path = str(folder)
    return model, AutoTokenizer.from_pretrained(source)


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path: Path):
    model, tokenizer = checkpoint(tmp_path / "model")
    size = len(tokenizer)
    load_chat(model, HIF)
    tokenizer.add_tokens(["<more>", "<most>"])
    tokenizer.save_pretrained(model.path)
    with pytest.raises(UserError, match=rf"2 tokens of its tokenizer .* embedding of {size} .*'<more>', id {size}"):
        load_chat(model, HIF)


IMAGE = "<image_soft_token>"


def with_image_token(folder: Path):
    """As Gemma 3's text-only checkpoints: the tokenizer's last token is one for images, without a row."""
    model, tokenizer = checkpoint(folder)
    size = len(tokenizer)
    tokenizer.add_special_tokens({"extra_special_tokens": [IMAGE]}, replace_extra_special_tokens=False)
    assert tokenizer.convert_tokens_to_ids(IMAGE) == size
    return model, tokenizer, size


def test_a_special_token_beyond_the_embedding_that_nothing_writes_is_read_as_text(tmp_path: Path):
    model, tokenizer, size = with_image_token(tmp_path / "model")
    tokenizer.save_pretrained(model.path)
    chat = load_chat(model, HIF)
    ids = chat.prompt_ids([*PROMPT[:1], {"role": "user", "content": f"See {IMAGE}!"}], [])
    assert max(ids) < size and len(chat.tokenizer) == size
    assert f"See {IMAGE}!" in chat.tokenizer.decode(ids)
    assert tokenizer.convert_tokens_to_ids("<tool_call>") in chat.ids("<tool_call>")  # the others are what they were
    assert load_model(model)(input_ids=torch.tensor([ids])).logits.isfinite().all()
    chat.save(tmp_path / "saved")  # as runs write it beside their weights, where it is loaded again
    shutil.copy(tmp_path / "model" / "config.json", tmp_path / "saved")
    model.path = str(tmp_path / "saved")
    assert load_chat(model, HIF).prompt_ids(PROMPT, []) == chat.prompt_ids(PROMPT, [])
    assert max(load_chat(model, HIF).ids(IMAGE)) < size


def test_a_special_token_that_is_listed_in_the_vocabulary_too_is_taken_out_of_both(tmp_path: Path):
    model, tokenizer, size = with_image_token(tmp_path / "model")
    tokenizer.save_pretrained(model.path)
    file = tmp_path / "model" / "tokenizer.json"
    written = json.loads(file.read_text())
    written["model"]["vocab"] |= {token["content"]: token["id"] for token in written["added_tokens"]}
    file.write_text(json.dumps(written))
    before = AutoTokenizer.from_pretrained(model.path).get_vocab()
    assert before.pop(IMAGE) == size
    chat = load_chat(model, HIF)
    assert chat.tokenizer.get_vocab() == before and max(chat.ids(f"a {IMAGE} b")) < size


@pytest.mark.parametrize("use", ["template", "eos_token", "pad_token", "beside ordinary vocabulary"])
def test_a_special_token_beyond_the_embedding_that_is_written_is_refused(tmp_path: Path, use: str):
    model, tokenizer, size = with_image_token(tmp_path / "model")
    if use == "template":
        tokenizer.chat_template = tokenizer.chat_template.replace("<|im_start|>", IMAGE)
    elif use.endswith("_token"):
        setattr(tokenizer, use, IMAGE)
    else:
        tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(model.path)
    first = f"'<more>', id {size + 1}" if use.startswith("beside") else f"'{IMAGE}', id {size}"
    with pytest.raises(UserError, match=rf"1 tokens of its tokenizer .* embedding of {size} .*{re.escape(first)}"):
        load_chat(model, HIF)


def test_the_doctor_sees_a_tokenizer_larger_than_the_embedding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model, tokenizer = checkpoint(tmp_path / "model")
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(model.path)
    monkeypatch.setattr(doctor, "CHECKS", (doctor.chat_template,))
    (finding,) = doctor.diagnose(composed("model=custom", f"model.path={model.path}"))
    assert finding.verdict == "fail" and "'<more>'" in finding.detail


def test_padding_beyond_the_embedding_is_refused(tmp_path: Path):
    model, _ = checkpoint(tmp_path / "model", pad_token_id=5000)
    with pytest.raises(UserError, match="pad_token_id=5000"):
        load_chat(model, HIF)


@pytest.mark.parametrize("first", ["default", "tool_use"])
def test_a_template_named_tool_use_is_used_where_there_are_tools(tmp_path: Path, first: str):
    model, tokenizer = checkpoint(tmp_path / "model")
    both = {"default": PHI, "tool_use": tokenizer.chat_template}
    tokenizer.chat_template = {name: both[name] for name in sorted(both, key=lambda name: name != first)}
    tokenizer.save_pretrained(model.path)
    with_tools = load_chat(model, Needs(tools=True, system=False))
    assert "<tools>" in with_tools.text(PROMPT, TOOL, True)
    without = load_chat(model, HIF)
    assert without.text(PROMPT, [], True).endswith("<|user|>\nName a colour.<|end|>\n<|assistant|>\n")
    for chat in (with_tools, without):  # what a run writes beside its weights has both again
        chat.save(tmp_path / "saved")
        assert AutoTokenizer.from_pretrained(tmp_path / "saved").chat_template == both
        assert isinstance(chat.tokenizer.chat_template, str)


def test_the_same_written_as_a_list_in_the_tokenizers_configuration(tmp_path: Path):
    model, tokenizer = checkpoint(tmp_path / "model")
    for file in (tmp_path / "model").glob("*.jinja"):
        file.unlink()
    file = tmp_path / "model" / "tokenizer_config.json"
    listed = [{"name": "default", "template": PHI}, {"name": "tool_use", "template": tokenizer.chat_template}]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": listed}))
    assert "<tools>" in load_chat(model, Needs(tools=True, system=False)).text(PROMPT, TOOL, True)


@pytest.mark.parametrize("needs", [HIF, Needs(tools=True, system=False)])
def test_a_lone_named_template_is_used_and_several_without_a_default_are_refused(tmp_path: Path, needs: Needs):
    model, tokenizer = checkpoint(tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").unlink()
    own = tokenizer.chat_template
    tokenizer.chat_template = {"rag": own}
    tokenizer.save_pretrained(model.path)
    assert load_chat(model, needs).tokenizer.chat_template == own
    tokenizer.chat_template = {"rag": own, "other": PHI}
    tokenizer.save_pretrained(model.path)
    with pytest.raises(UserError, match=r"named default \((rag, other|other, rag)\)"):
        load_chat(model, needs)
