"""Targets under every chat template that TRL ships: exactly what the assistant writes, or a refusal with its reason."""

from __future__ import annotations

import re
from functools import cache

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl import chat_template_utils as trl_templates

from agentrl.chat.format import ChatFormat
from agentrl.chat.labels import CompletionLabeller
from agentrl.chat.trace_tokens import tokenize_trace
from agentrl.core.bench import Task
from agentrl.core.errors import UserError
from agentrl.core.expert_trace import Chunk, ExpertTrace, TraceTurn
from agentrl.core.trajectory import Component
from agentrl.trainers.sft import IGNORED, TARGETS, trace_labels

FILES = {file.stem: file for file in sorted(trl_templates._CHAT_TEMPLATES_DIR.glob("*.jinja"))}
TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look.",
        "parameters": {
            "type": "object",
            "properties": {"x": {"type": "string", "description": "Where."}},
            "required": ["x"],
        },
    },
}
TASK = Task("t", [{"role": "user", "content": "QUESTION"}], [TOOL], "", "")
SAID = ("I restate. ", "Then I look.")
SPECIAL = re.compile(r'<\|[a-zA-Z_"]*\|?>|<[a-z_]+\|>|</?[a-zA-Z_]+>|<｜[^>]*｜>|<\|?[A-Z_]+\|?>')


@cache
def tokenizer_of(family: str) -> PreTrainedTokenizerFast:
    """One token a byte, and the tags that the family's template writes as tokens of their own."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    plain.decoder = decoders.ByteLevel()
    template = FILES[family].read_text(encoding="utf-8")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain,
        eos_token="<|eos|>",
        pad_token="<|pad|>",
        bos_token="<|bos|>",
        additional_special_tokens=sorted(set(SPECIAL.findall(template)) - {"<answer>", "</answer>"}),
    )
    tokenizer.chat_template = template
    original = template if not family.endswith("_training") else FILES[family.removesuffix("_training")].read_text()
    try:  # a training template is read as its original
        tokenizer.chat_template = original
        trl_templates.add_response_schema(tokenizer)
    except ValueError:
        pass
    tokenizer.chat_template = template
    return tokenizer


def trace_of(*turns: tuple[tuple[str, ...], tuple[dict, ...]], answer: str = "ANS") -> ExpertTrace:
    made = [
        TraceTurn(tuple(Chunk("other", text) for text in said), calls, tuple(f"OBS{n}" for n in range(len(calls))))
        for said, calls in turns
    ]
    return ExpertTrace("t", tuple(made), answer, "generated")


def targets(family: str, reasoning: str, trace: ExpertTrace, answer: bool) -> list[str]:
    """What is trained on, a text a stretch."""
    chat = ChatFormat(tokenizer_of(family), None, reasoning)
    labels = trace_labels(tokenize_trace(chat, TASK, trace, with_answer=answer), list(TARGETS))
    runs: list[list[int]] = [[]]
    for label in labels:
        if label == IGNORED:
            runs.append([])
        else:
            runs[-1].append(label)
    return [chat.tokenizer.decode(run) for run in runs if run]


def look(x: object = "a") -> dict:
    return {"name": "look", "arguments": {"x": x}}


HERMES = '<tool_call>\n{"name": "look", "arguments": {"x": "a"}}\n</tool_call>'
XML = "<tool_call>\n<function=look>\n<parameter=x>\na\n</parameter>\n</function>\n</tool_call>"
GEMMA = '<|tool_call>call:look{x:<|"|>a<|"|>}<tool_call|>'
GPT = " to=functions.look<|channel|>commentary json<|message|>" + '{"x": "a"}'
GLM = "<tool_call>look\n<arg_key>x</arg_key>\n<arg_value>a</arg_value>\n</tool_call>"
LFM = "<|tool_call_start|>[look(x='a')]<|tool_call_end|>"
MUSE = (
    ' to=look<|message|><atem:function_calls>\n<atem:invoke name="look">\n<atem:parameter name="x">a</atem:parameter>'
    "\n</atem:invoke>\n</atem:function_calls>"
)
# The call, the end of a turn with calls, what an answer is wrapped in.
FORMS = {
    "qwen2_5": (HERMES, "<|im_end|>", "{}<|im_end|>"),
    "qwen3": (HERMES, "<|im_end|>", "{}<|im_end|>"),
    "qwen3_instruct_2507": (HERMES, "<|im_end|>", "{}<|im_end|>"),
    "qwen3_vl": (HERMES, "<|im_end|>", "{}<|im_end|>"),
    "qwen3_5_think": (XML, "<|im_end|>", "{}<|im_end|>"),
    "qwen3_5_nothink": (XML, "<|im_end|>", "{}<|im_end|>"),
    "qwen3_6": (XML, "<|im_end|>", "{}<|im_end|>"),
    "qwen3_8": (XML, "<|im_end|>", "{}<|im_end|>"),
    "gemma4": (GEMMA, "<|tool_response>", "{}<turn|>"),
    "gemma4_v2": (GEMMA, "<turn|>", "{}<turn|>"),
    "gemma4_v3": (GEMMA, "<|tool_response>", "{}<turn|>"),
    "gemma4_v4": (GEMMA, "<|tool_response>", "{}<turn|>"),
    "gemma4_v5": (GEMMA, "<|tool_response>", "{}<turn|>"),
    "diffusion_gemma": (GEMMA, "<|tool_response>", "{}<turn|>"),
    "gptoss": (GPT, "<|call|>", "<|channel|>final<|message|>{}<|return|>"),
    "glm4moe": (GLM, "<|observation|>", "{}<|user|>"),
    "lfm2_v2": (LFM, "<|im_end|>", "{}<|im_end|>"),
    "lfm2_2_5": (LFM, "<|im_end|>", "{}<|im_end|>"),
    "lfm2_2_5_v2": (LFM, "<|im_end|>", "{}<|im_end|>"),
    "lfm2_2_5_vl": (LFM, "<|im_end|>", "{}<|im_end|>"),
    "llama3_1": ('{"name": "look", "parameters": {"x": "a"}}', "<|eot_id|>", "{}<|eot_id|>"),
    "llama3_2": ('{"name": "look", "parameters": {"x": "a"}}', "<|eot_id|>", "{}<|eot_id|>"),
    "muse_glimmer": (MUSE, "<|eot|>", " to=user<|message|>{}<|eot|>"),
}
NEMOTRON = [name for name in FILES if name.startswith("nemotron") and not name.endswith("_training")]
NEEDS_THOUGHT = {*NEMOTRON, "deepseekv3"}  # their prompt opens a think block that a turn without thoughts lacks
GPT_ANALYSIS = ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant")
GEMMA_THOUGHT = ("<|channel>thought\n", "\n<channel|>")
THINK = {  # what stands around the words of a turn with calls, reasoning=think
    "qwen3": ("<think>\n", "\n</think>\n\n"),
    **dict.fromkeys(("qwen3_5_think", "qwen3_6", "qwen3_8"), ("", "\n</think>\n\n")),
    **dict.fromkeys(("gemma4", "gemma4_v3", "gemma4_v4", "gemma4_v5", "diffusion_gemma"), GEMMA_THOUGHT),
    "gptoss": GPT_ANALYSIS,
    "glm4moe": ("\n<think>", "</think>\n"),
    **dict.fromkeys(("lfm2_2_5", "lfm2_2_5_v2", "lfm2_2_5_vl"), ("<think>", "</think>")),
    "muse_glimmer": (" to=self<|message|>", "<|eom|><|start|>assistant"),
    **dict.fromkeys(("nemotron_3_nano", "nemotron_3_super"), ("", "\n</think>\n")),
    **dict.fromkeys(("nemotron_3_ultra", "nemotron_3_5_lightning"), ("", "</think>\n")),
}
CONTENT = {  # between the words and the call, reasoning=content
    **dict.fromkeys(("qwen2_5", "qwen3", "qwen3_instruct_2507", "qwen3_vl", "glm4moe"), ("", "\n")),
    **dict.fromkeys(("qwen3_5_think", "qwen3_5_nothink", "qwen3_6", "qwen3_8"), ("", "\n\n")),
    **dict.fromkeys(("lfm2_v2", "lfm2_2_5", "lfm2_2_5_v2", "lfm2_2_5_vl"), ("", "")),
    "gptoss": GPT_ANALYSIS,
}
TRAINING = {f"{name}_training": form for name, form in FORMS.items() if f"{name}_training" in FILES}


def form_of(family: str) -> tuple[str, str, str]:
    if family in NEMOTRON:
        return XML, "\n<|im_end|>", "{}<|im_end|>"
    return FORMS[family.removesuffix("_training")]


def test_every_template_that_renders_calls_is_known_here() -> None:
    able = {name for name in FILES if trl_templates.supports_tool_calling(tokenizer_of(name))}
    assert {name.removesuffix("_training") for name in able} == FORMS.keys() | NEEDS_THOUGHT


@pytest.mark.parametrize("family", [*FORMS, *TRAINING])
def test_calls_alone_and_the_answer_are_targets_with_their_ends(family: str) -> None:
    call, call_end, answer = form_of(family)
    found = targets(family, "content", trace_of(((), (look(),)), ((), (look(),))), answer=True)
    assert found == [call + call_end] * 2 + [answer.format("<answer>ANS</answer>")]


@pytest.mark.parametrize("family", THINK)
def test_thoughts_are_targets_with_what_opens_and_closes_them(family: str) -> None:
    call, call_end, _ = form_of(family)
    before, after = THINK[family]
    found = targets(family, "think", trace_of((SAID, (look(),)), (SAID[1:], (look(),))), answer=False)
    assert found == [before + "".join(said) + after + call + call_end for said in (SAID, SAID[1:])]


@pytest.mark.parametrize("family", CONTENT)
def test_reasoning_in_the_text_is_a_target_as_the_template_writes_it(family: str) -> None:
    call, call_end, answer = form_of(family)
    before, after = CONTENT[family]
    with_answer = family != "gptoss"  # whose template drops earlier analysis once there is an answer
    found = targets(family, "content", trace_of((SAID, (look(),)), (SAID[1:], (look(),))), with_answer)
    turns = [before + "".join(said) + after + call + call_end for said in (SAID, SAID[1:])]
    assert found == turns + [answer.format("<answer>ANS</answer>")] * with_answer


@pytest.mark.parametrize(
    ("family", "reasoning", "said"),
    [
        ("qwen2_5", "think", "drops the reasoning of a turn"),
        ("llama3_1", "content", "drops the reasoning of a turn"),
        ("gemma4_v2", "think", "drops the reasoning of a turn"),
        ("gemma4", "content", "rewrites the text before a turn"),
        ("deepseekv3", "content", "rewrites the text before a turn"),
        ("deepseekv3", "think", "rewrites the text before a turn"),
        ("qwen3_5_nothink", "think", "rewrites the text before a turn"),
        ("nemotron_3_nano", "content", "rewrites the text before a turn"),
        ("gptoss", "think", "rewrites the text before a turn"),
        ("llama3", "content", "drops calls|drops a turn"),
        ("phi3", "content", "rewrites the text before a turn"),
    ],
)
def test_what_cannot_be_told_apart_is_refused_with_the_reason(family: str, reasoning: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        targets(family, reasoning, trace_of((SAID, (look(),)), (SAID, (look(),))), answer=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("family", NEMOTRON)
def test_a_prompt_that_opens_a_think_block_takes_turns_without_thoughts_once_thinking_is_off(family: str) -> None:
    call, call_end, _ = form_of(family)
    chat = ChatFormat(tokenizer_of(family), None, "content", arguments={"enable_thinking": False})
    trace = tokenize_trace(chat, TASK, trace_of((SAID, (look(),))), with_answer=True)
    spoken = [label for label in trace_labels(trace, list(TARGETS)) if label != IGNORED]
    text = chat.tokenizer.decode(spoken)
    assert text.startswith("".join(SAID)) and text.count(call + call_end) == 1
    assert text.endswith("<answer>ANS</answer><|im_end|>") and "think" not in text


def test_several_calls_of_which_a_template_writes_one_are_refused() -> None:
    for family in ("gptoss", "llama3_1"):
        with pytest.raises(UserError, match=r"drops some of the calls|refuses a conversation"):
            targets(family, "content", trace_of(((), (look(), look("b")))), answer=False)


HARD = {
    "x": 'say "hi", it\'s\n\ttwo lines \\ back</answer> {not: json} ünï 漢字 🙂',
    "deep": {"list": [1, 2.5, True, None, {"k": ["v", {}]}], "empty": {}},
}


@pytest.mark.parametrize("family", [name for name in CONTENT if name != "gptoss"])
def test_hard_arguments_words_and_answers_are_targets_whole(family: str) -> None:
    """Whatever is written, targets are what the template writes from each start of a turn to its end."""
    said = ('\nIs it {"name": "look"}? 漢字 [1] ', "I restate. ", "I restate. ", "call:look{ 🙂\n")
    calls = ({"name": "look", "arguments": HARD}, {"name": "peek", "arguments": {}}, look())
    trace = trace_of((said, calls), (("Once more.",), calls[:1]), answer='"quoted" 漢字\nand {more}')
    found = targets(family, "content", trace, answer=True)
    chat = ChatFormat(tokenizer_of(family), None, "content")
    block = chat.turns.calls(calls)
    assert len(found) == 3 and found[0].count("I restate. ") == 2
    assert found[0].strip().startswith("".join(said).strip()) and block in found[0]
    assert all(text not in "".join(found) for text in ("OBS", "QUESTION", "im_start"))
    assert '<answer>"quoted" 漢字\nand {more}</answer>' in found[2]
    ends = [
        found[0].removeprefix(found[0].partition(block)[0] + block),
        *(text[-len(form_of(family)[1]) :] for text in found[1:2]),
    ]
    assert {end.strip() for end in ends} == {form_of(family)[1]}


@pytest.mark.parametrize("drop", [("reasoning",), ("tool_call",), ("tool_response",), ("reasoning", "tool_response")])
def test_traces_without_a_part_have_no_target_of_it(drop: tuple[str, ...]) -> None:
    trace = trace_of((SAID, (look(),)), (SAID, (look(),))).without(drop)
    for family in ("qwen2_5", "qwen3", "qwen3_5_think", "lfm2_2_5", "llama3_1"):
        if family == "llama3_1" and "reasoning" not in drop:
            continue
        text = "".join(targets(family, "content", trace, answer=True))
        assert text.count("Then I look.") == (0 if "reasoning" in drop else 2)
        assert text.count(form_of(family)[0]) == (0 if "tool_call" in drop else 2)
        assert "OBS" not in text and "<answer>ANS</answer>" in text


@pytest.mark.parametrize("family", [name for name in THINK if tokenizer_of(name).response_template])
def test_sampled_tokens_are_named_as_the_traces_are(family: str) -> None:
    """A policy that writes what the expert wrote gets the components of the trace."""
    tokenizer = tokenizer_of(family)
    chat = ChatFormat(tokenizer, None, "think")
    trace = tokenize_trace(chat, TASK, trace_of((SAID, (look(),))))
    own = [kind != Component.OBSERVATION for kind in trace.component]
    ids = [token for token, sampled in zip(trace.ids, own, strict=True) if sampled]
    wanted = [kind for kind, sampled in zip(trace.component, own, strict=True) if sampled]
    _, found = CompletionLabeller(tokenizer)(ids, [1] * len(ids), [{"role": "assistant", "tool_calls": [look()]}])

    def text(kinds: list[int], kind: Component) -> str:
        return tokenizer.decode([token for token, one in zip(ids, kinds, strict=True) if one == kind]).strip()

    for kind in (Component.TOOL_CALL, Component.DELIMITER):
        assert text(found, kind).replace("\n", "") == text(wanted, kind).replace("\n", ""), kind
    assert "".join(SAID) in text(found, Component.REASONING)


@pytest.mark.parametrize("family", ["glm4moe", "gemma", "gemma3", "phi3", "llama3", "qwen3", "cohere2"])
def test_a_plain_reply_ends_with_the_token_that_ends_it(family: str) -> None:
    end = ChatFormat(tokenizer_of(family), None, "content").turns.answer_end
    ends = {"glm4moe": "<|user|>", "gemma": "<end_of_turn>", "gemma3": "<end_of_turn>", "phi3": "<|end|>"}
    ends |= {"llama3": "<|eot_id|>", "qwen3": "<|im_end|>", "cohere2": "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"}
    assert end == ends[family]
