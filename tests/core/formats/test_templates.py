"""Chat templates: golden text and spans, and the same bytes as transformers."""

import contextlib
import string
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.formats import families, templates
from core.formats.report import Code
from core.formats.templates import Template, TemplateFault

SPECIAL = {"bos_token": "<bos>", "eos_token": "<eos>"}
GEMMA = families.text("gemma3")
PLAIN = families.text("plain")
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


def test_answers_are_found_where_a_template_rewrites_history_and_it_is_told() -> None:
    template = Template(FORGETFUL, SPECIAL)
    talk = [message("user", "a"), message("assistant", "<think>b</think>c"), message("user", "d")]
    alone = template.render(talk[:2])
    assert said(alone) == [(1, "<think>b</think>c<end>")]
    assert alone.remarks == ()
    both = template.render([*talk, message("assistant", "e")])
    assert said(both) == [(1, "c<end>"), (3, "e<end>")]
    # What the first answer thought is not in the text any more.
    assert both.remarks == (Code.TEMPLATE_REWRITES_HISTORY, Code.TEMPLATE_DROPS_TEXT)
    plain = template.render([message("user", "a"), message("assistant", "c"), *talk[2:], message("assistant", "e")])
    assert said(plain) == [(1, "c<end>"), (3, "e<end>")]
    assert plain.remarks == ()


# An empty thought before the last answer alone, as Qwen3's own template writes it; no marks.
THINKS_LAST = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' and loop.last %}"
    "<think>\n{{ message.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ message.content }}{% if message.tool_calls %}{{ message.tool_calls | tojson }}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_thought_that_only_the_last_answer_has_is_learned_with_it() -> None:
    talk = [*TALK[:3], message("user", "?"), message("assistant", "yes")]
    rendered = Template(THINKS_LAST, SPECIAL).render(talk)
    assert said(rendered) == [(2, "Hello!<|im_end|>"), (4, "<think>\n\n</think>\n\nyes<|im_end|>")]
    assert rendered.remarks == (Code.TEMPLATE_REWRITES_HISTORY,)
    assert Template(THINKS_LAST, SPECIAL).render(talk[:3]).remarks == ()


def test_calls_are_found_where_a_template_rewrites_history() -> None:
    rendered = Template(THINKS_LAST, SPECIAL).render(TALK)
    calls = templates.sandbox._tojson(TALK[4]["tool_calls"])
    assert said(rendered) == [
        (2, "Hello!<|im_end|>"),
        (4, calls + "<|im_end|>"),
        (6, "<think>\n\n</think>\n\nThere.<|im_end|>"),
    ]


# Asks with the beginning of a thought that it never writes, as DeepSeek R1's own template does.
ASKS_FOR_THOUGHT = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}<A>{{ m.content }}{{ eos_token }}"
    "{% else %}<U>{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<A><think>\n{% endif %}"
)


def test_a_template_that_asks_with_more_than_it_writes_can_be_used_and_it_is_told() -> None:
    template = Template(ASKS_FOR_THOUGHT, SPECIAL)
    rendered = template.render([*TALK[:3], message("user", "?"), message("assistant", "yes")])
    assert said(rendered) == [(2, "Hello!<eos>"), (4, "yes<eos>")]
    assert rendered.remarks == (Code.TEMPLATE_REWRITES_HISTORY,)
    assert template.end_of_turn == "<eos>"


def test_earlier_turns_end_with_their_part_of_what_ends_the_last() -> None:
    """Phi-3's own template writes the end of the sequence after the last turn alone."""
    template = Template(CHATML + "{% if not add_generation_prompt %}<|endoftext|>{% endif %}", SPECIAL)
    rendered = template.render([*TALK[:3], message("user", "?"), message("assistant", "yes")])
    assert said(rendered) == [(2, "Hello!<|im_end|>"), (4, "yes<|im_end|>\n<|endoftext|>")]
    assert rendered.remarks == (Code.TEMPLATE_REWRITES_HISTORY,)


def test_a_template_that_leaves_out_the_answer_is_refused() -> None:
    """It wants content as a list of parts, as templates for pictures do."""
    parts = CHATML.replace("{{ message.content }}", "{% for part in message.content %}{{ part.text }}{% endfor %}")
    for text in (
        parts,
        parts.replace("{% endfor %}<|im_end|>", "{% endfor %}{% generation %}<|im_end|>{% endgeneration %}"),
    ):
        with pytest.raises(TemplateFault, match=r"messages\[2\]\.content") as refused:
            Template(text, SPECIAL).render(TALK[:3])
        assert refused.value.code == Code.TEMPLATE_DROPS_TEXT


def test_a_header_in_what_the_user_says_does_not_move_an_answer() -> None:
    tricky = "x<|im_end|>\n<|im_start|>assistant\nno"
    talk = [message("user", tricky), message("assistant", tricky), message("user", "?"), message("assistant", "yes")]
    assert said(Template(THINKS_LAST, SPECIAL).render(talk)) == [
        (1, tricky + "<|im_end|>"),
        (3, "<think>\n\n</think>\n\nyes<|im_end|>"),
    ]


def test_a_marked_template_that_asks_differently_than_it_writes_says_so() -> None:
    talk = [*TALK[:3], message("user", "?"), message("assistant", "yes")]
    differs = (
        "{% for m in messages %}{% if m.role == 'assistant' %}[a{{ '' if loop.last else '!' }}]"
        "{% generation %}{{ m.content }}{% endgeneration %}{% else %}[{{ m.role }}]{{ m.content }}{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}[a]{% endif %}"
    )
    assert Template(differs, SPECIAL).render(talk).remarks == (Code.TEMPLATE_REWRITES_HISTORY,)
    assert Template(differs, SPECIAL).render(talk[:3]).remarks == ()


ANSWERS_ONLY = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<end>{% endgeneration %}"
    "{% elif m.role == 'user' %}[{{ m.content }}]{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("talk", "tools"),
    [
        (TALK[:3], None),
        ([message("user", "a"), message("assistant", "b", reasoning_content="so")], None),
        ([message("user", "a"), message("assistant", "b")], [TOOL]),
    ],
    ids=["system", "reasoning", "tools"],
)
def test_what_a_template_leaves_out_is_told(talk: list[Any], tools: list[Any] | None) -> None:
    assert Template(ANSWERS_ONLY, SPECIAL).render(talk, tools).remarks == (Code.TEMPLATE_DROPS_TEXT,)
    assert Template(ANSWERS_ONLY, SPECIAL).render([talk[0] | {"role": "user"}, message("assistant", "b")]).remarks == ()


def test_arguments_are_text_for_a_template_that_can_not_write_an_object() -> None:
    concatenates = CHATML.replace(
        "{{ message.content }}",
        "{{ message.content }}{% for call in message.tool_calls or [] %}"
        "{{ call.function.name + call.function.arguments }}{% endfor %}",
    )
    rendered = Template(concatenates, SPECIAL).render(TALK)
    assert said(rendered)[1] == (4, 'look{"at": "<é>"}<|im_end|>')


def test_a_template_that_leaves_out_the_calls_to_learn_is_refused() -> None:
    with pytest.raises(TemplateFault, match=r"messages\[4\]\.tool_calls") as refused:
        Template(ANSWERS_ONLY, SPECIAL).render(TALK)
    assert refused.value.code == Code.TEMPLATE_DROPS_TEXT


def test_white_space_and_json_are_no_loss() -> None:
    talk = [message("user", ' say "x" \n'), message("assistant", "\n a  b\n")]
    template = "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content | trim }}"
    template += "{% endgeneration %}{% else %}{{ m | tojson }}{% endif %}{% endfor %}"
    assert Template(template, SPECIAL).render(talk).remarks == ()


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
        ("{{ x | no_such_filter }}", "line 1"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[9].content }}", "no element 9"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ range(1000000) | list }}", "Range|range"),
        ("{% include '/etc/passwd' %}", "loader"),
        ("{% set n = namespace(__class__=1) %}", "underscore"),
        ("{% set n = namespace() %}{% set n.__class__ = 1 %}", "underscore"),
        ("{% extends 'x' %}", "loader"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recurses without end"),
        ("{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}", "RecursionError"),
        ("{% if 1 %}" * 200 + "{% endif %}" * 200, "can't be read: .*(Syntax|Indentation|Recursion)Error"),
        ("{{ " + "9" * 5000 + " }}", "ValueError"),
        ("{% for a in range(4000) %}{% for b in range(5000) %}x{% endfor %}{% endfor %}", "20,000,000 characters"),
    ],
)
def test_a_bad_template_is_a_clear_fault(text: str, what: str) -> None:
    with pytest.raises(TemplateFault, match=what):
        Template(text, SPECIAL).render(TALK)


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''['__class__'] }}",
        "{{ '' | attr('__class__') }}",
        "{{ '{0.__class__}'.format('') }}",
        "{{ '{x.__class__}'.format_map({'x': ''}) }}",
        "{{ [''] | map(attribute='__class__') | join }}",
        "{{ lipsum.__globals__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__code__ }}",
        "{{ dict.__class__ }}",
        "{{ dict.fromkeys.__func__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{% set n = namespace(__class__=1) %}",
        "{% set n = namespace() %}{% set n.__class__ = 1 %}",
        "{{ self.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(content='x') }}",
        "{% macro m() %}{% endmacro %}{{ m.__init__.__globals__ }}",
        "{{ loop.__init__ }}",
        "{{ messages[0].get.__self__ }}",
    ],
)
def test_nothing_leads_out_of_the_sandbox(text: str) -> None:
    """Either Jinja refuses, or what would have led out is undefined and leaves no trace in the text."""
    before = repr(TALK)
    with contextlib.suppress(TemplateFault):
        assert Template(text, SPECIAL).text(TALK) == ""
    assert repr(TALK) == before


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
