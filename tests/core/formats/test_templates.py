"""Chat templates: golden text and spans, and the same bytes as transformers."""

import string
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.formats import templates
from core.formats.report import Code
from core.formats.templates import Template, TemplateFault

SPECIAL = {"bos_token": "<bos>", "eos_token": "<eos>"}
GEMMA = templates.default("gemma3_text")[1]
PLAIN = templates.default("llama")[1]
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Forgets the reasoning of all but the last answer, as Qwen3's does.
FORGETFUL = (
    "{% for message in messages %}<{{ message.role }}>"
    "{% if message.role == 'assistant' and not loop.last %}{{ message.content.split('</think>')[-1] }}"
    "{% else %}{{ message.content }}{% endif %}<end>\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
IN_A_MACRO = (
    "{% macro said(text) %}{% generation %}{{ text }}<end>{% endgeneration %}{% endmacro %}"
    "{% for message in messages %}[{{ message.role }}]{% if message.role == 'assistant' %}{{ said(message.content) }}"
    "{% else %}{{ message.content }}{% endif %}{% endfor %}"
)
TWO_MARKS = (
    "{% for message in messages %}[{{ message.role }}]{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content[0] }}{% endgeneration %}|{% generation %}{{ message.content[1:] }}"
    "<end>{% endgeneration %}{% else %}{{ message.content }}{% endif %}{% endfor %}"
)
HELPERS = (
    "{{ bos_token }}{% set ns = namespace(n=0) %}{% for message in messages %}\n"
    "    {% if loop.index > 3 %}{% break %}{% endif %}\n"
    "    {% set ns.n = ns.n + 1 %}\n"
    "{{ ns.n }} {{ message | tojson }} {{ dict(a='<é>') | tojson(indent=2) }}\n"
    "{% endfor %}{{ tools | tojson if tools else '' }}{{ strftime_now('%Y') }}"
)
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


def message(role: str, content: str, **fields: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **fields}


TALK = [
    message("system", "Be kind."),
    message("user", " Hi "),
    message("assistant", "Hello!"),
    message("user", "Where is it?"),
    message(
        "assistant",
        "",
        tool_calls=[{"id": "1", "type": "function", "function": {"name": "look", "arguments": {"at": "<é>"}}}],
    ),
    message("tool", "there", tool_call_id="1"),
    message("assistant", "There."),
]


def said(rendered: templates.Rendered) -> list[tuple[int, str]]:
    return [(span.message, rendered.text[span.start : span.end]) for span in rendered.spans]


def test_gemma_golden() -> None:
    rendered = Template(GEMMA, SPECIAL).render(TALK)
    assert rendered.text == (
        "<bos><start_of_turn>user\nBe kind.\n\nHi<end_of_turn>\n"
        "<start_of_turn>model\nHello!<end_of_turn>\n"
        "<start_of_turn>user\nWhere is it?<end_of_turn>\n"
        '<start_of_turn>model\n{"name": "look", "arguments": {"at": "<é>"}}<end_of_turn>\n'
        "<start_of_turn>user\nthere<end_of_turn>\n"
        "<start_of_turn>model\nThere.<end_of_turn>\n"
    )
    assert said(rendered) == [
        (2, "Hello!<end_of_turn>"),
        (4, '{"name": "look", "arguments": {"at": "<é>"}}<end_of_turn>'),
        (6, "There.<end_of_turn>"),
    ]


def test_plain_golden() -> None:
    rendered = Template(PLAIN, SPECIAL).render(TALK[:3])
    assert rendered.text == "<bos>### System\nBe kind.\n\n### User\nHi\n\n### Assistant\nHello!<eos>\n\n"
    assert said(rendered) == [(2, "Hello!<eos>")]
    # A model without BOS gets none.
    assert Template(PLAIN, {"eos_token": "<eos>"}).render(TALK[:3]).text.startswith("### System")


@pytest.mark.parametrize("text", [GEMMA, PLAIN])
def test_the_default_templates_name_the_tools(text: str) -> None:
    rendered = Template(text, SPECIAL).render(TALK, [TOOL])
    assert '\n{"type": "function", "function": {"name": "look"' in rendered.text
    assert rendered.text.count("<bos>") == 1


def test_gemma_takes_any_order_of_turns() -> None:
    odd = [message("assistant", "a"), message("system", "b"), message("assistant", "c"), message("user", "d")]
    assert Template(GEMMA, SPECIAL).text(odd, generate=True) == (
        "<bos><start_of_turn>model\na<end_of_turn>\n<start_of_turn>user\nb\n\n<end_of_turn>\n"
        "<start_of_turn>model\nc<end_of_turn>\n<start_of_turn>user\nd<end_of_turn>\n<start_of_turn>model\n"
    )


def test_developer_messages_are_system_messages_to_templates_that_do_not_know_them() -> None:
    text = Template(CHATML, SPECIAL).text([message("developer", "x")])
    assert text == "<|im_start|>system\nx<|im_end|>\n"
    knows = CHATML + "{# developer #}"
    assert Template(knows, SPECIAL).text([message("developer", "x")]).startswith("<|im_start|>developer")


def test_without_marks_the_answer_is_what_follows_the_generation_prompt() -> None:
    rendered = Template(CHATML, SPECIAL).render([*TALK[:3], message("user", "?"), message("assistant", "yes\n")])
    assert said(rendered) == [(2, "Hello!<|im_end|>"), (4, "yes\n<|im_end|>")]


def test_a_template_that_rewrites_history_is_refused_where_it_matters() -> None:
    template = Template(FORGETFUL, SPECIAL)
    talk = [message("user", "a"), message("assistant", "<think>b</think>c"), message("user", "d")]
    assert said(template.render(talk[:2])) == [(1, "<think>b</think>c<end>")]
    with pytest.raises(TemplateFault, match=r"messages\[1\]") as refused:
        template.render([*talk, message("assistant", "e")])
    assert refused.value.code == Code.TEMPLATE_REWRITES_HISTORY


def test_marks_hold_inside_macros() -> None:
    rendered = Template(IN_A_MACRO, SPECIAL).render(TALK[:3])
    assert rendered.text == "[system]Be kind.[user] Hi [assistant]Hello!<end>"
    assert said(rendered) == [(2, "Hello!<end>")]


def test_several_marks_in_one_message_belong_to_it() -> None:
    rendered = Template(TWO_MARKS, SPECIAL).render([*TALK[:3], message("user", "?"), message("assistant", "yes")])
    assert said(rendered) == [(2, "H"), (2, "ello!<end>"), (4, "y"), (4, "es<end>")]


def test_extents_cover_the_whole_text() -> None:
    template = Template(GEMMA, SPECIAL)
    text = template.text(TALK)
    extents = template.extents(TALK, None, text)
    assert "".join(text[start:end] for start, end in extents) == text
    assert text[slice(*extents[0])] == "<bos><start_of_turn>user\nBe kind.\n\n"
    assert text[slice(*extents[2])] == "<start_of_turn>model\nHello!<end_of_turn>\n"


@pytest.mark.parametrize(("text", "end"), [(GEMMA, "<end_of_turn>"), (PLAIN, "<eos>"), (CHATML, "<|im_end|>")])
def test_the_end_of_turn_is_known(text: str, end: str) -> None:
    assert Template(text, SPECIAL).end_of_turn == end


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{% for %}", "line 1"),
        ("{% generation %}x", "line 1"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[9].content }}", "no element 9"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ ''.__class__.__mro__ }}", "unsafe|access"),
        ("{{ messages.append(1) }}", "unsafe|not safely callable"),
        ("{% set n = namespace(__class__=1) %}", "underscore"),
        ("{{ range(1000000) | list }}", "Range|range"),
        ("{% include '/etc/passwd' %}", "loader"),
    ],
)
def test_a_bad_template_is_a_clear_fault(text: str, what: str) -> None:
    with pytest.raises(TemplateFault, match=what):
        Template(text, SPECIAL).render(TALK)


def transformers_text(template: str, messages: list[Any], tools: list[Any] | None, generate: bool) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered, _ = render_jinja_template([messages], tools, None, template, add_generation_prompt=generate, **SPECIAL)
    return str(rendered[0])


ALL = [GEMMA, PLAIN, CHATML, FORGETFUL, IN_A_MACRO, HELPERS]


@pytest.mark.parametrize("template", ALL)
@pytest.mark.parametrize("tools", [None, [TOOL]])
@pytest.mark.parametrize("generate", [False, True])
def test_the_text_is_what_transformers_renders(template: str, tools: list[Any] | None, generate: bool) -> None:
    ours = Template(template, SPECIAL).text(TALK, tools, generate=generate)
    assert ours == transformers_text(template, TALK, tools, generate)


WORDS = st.text(string.ascii_letters + string.digits + " \n\t\"'{}<|>/\\é東🙂", min_size=1, max_size=12)
TURNS = st.lists(st.tuples(st.sampled_from(["system", "user", "assistant", "tool"]), WORDS), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(TURNS, WORDS, st.sampled_from([GEMMA, PLAIN, CHATML]))
def test_invariants_of_generated_conversations(turns: list[tuple[str, str]], answer: str, text: str) -> None:
    messages = [message(role, content) for role, content in turns] + [message("assistant", answer)]
    template = Template(text, SPECIAL)
    rendered = template.render(messages)
    assert rendered.text == transformers_text(text, messages, None, False)
    assert rendered.text.count("<bos>") == (0 if text is CHATML else 1)
    # A beginning of the conversation renders to a beginning of the text.
    for count in range(1, len(messages)):
        assert rendered.text.startswith(template.text(messages[:count]))
    # What is learned is what the user's assistant says, then the end of the turn, in order.
    speakers = [item for item in messages if item["role"] == "assistant"]
    for span, speaker in zip(rendered.spans, speakers, strict=True):
        assert messages[span.message] is speaker
        content = speaker["content"] if text is CHATML else speaker["content"].strip()
        assert rendered.text[span.start : span.end] == content + template.end_of_turn
