"""The conversations that the golden files hold, as the reader hands them on: arguments are objects."""

from typing import Any

from core.formats.conversation import Message
from core.formats.rows import Chat


def say(role: str, content: str, **fields: Any) -> Message:
    return {"role": role, "content": content, **fields}


def call(id: str, name: str, **arguments: Any) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TIDE = {
    "type": "function",
    "function": {
        "name": "tide",
        "description": "When the tide is high, “local time”.",
        "parameters": {"type": "object", "properties": {"harbour": {"type": "string"}, "days": {"type": "integer"}}},
    },
}
SYSTEM = say("system", "You are a friendly assistant for the harbour office.")
ASK = say("user", "What is the weather like in Oslo?")
CALL = say("assistant", "", tool_calls=[call("a1b2c3d4e", "weather", city="Oslo")])
RESULT = say("tool", "sunny, 21 degrees", tool_call_id="a1b2c3d4e")
TELL = say("assistant", "It is sunny in Oslo, 21 degrees.")

CONVERSATIONS: dict[str, Chat] = {
    "one turn": Chat([ASK, TELL], None),
    "system": Chat([SYSTEM, ASK, TELL], None),
    "empty system": Chat([say("system", ""), ASK, TELL], None),
    "developer": Chat([say("developer", "Answer briefly."), ASK, TELL], None),
    "turns": Chat([SYSTEM, ASK, TELL, say("user", "And in Bergen?"), say("assistant", "Rain."), ASK, TELL], None),
    "weights": Chat(
        [SYSTEM, ASK, {**TELL, "weight": 0.0}, say("user", "Sure?"), say("assistant", "Yes.", weight=0.5), ASK, TELL],
        None,
    ),
    "white space": Chat([say("user", "  two\n\nlines \t"), say("assistant", "an  answer\n\n  with   gaps")], None),
    "unicode": Chat(
        [
            say("system", "Résumé — „Hafen“, 港口, ميناء."),
            say("user", "🙂👩‍👩‍👧 na\u0308ive \u200bzero width, ﬁ ligature?"),
            say("assistant", "東京 is 21 °C ✓ — “wie schön”, नमस्ते 🌦️"),
        ],
        None,
    ),
    "markup": Chat(
        [
            say("user", 'Write {{ user }} and {% if %} as {"json": [1, null]} & <b>HTML</b>.'),
            say("assistant", "```html\n<b>{{ user }}</b> & {% if %}\n```"),
        ],
        None,
    ),
    "tools offered": Chat([SYSTEM, say("user", "Hello?"), say("assistant", "Hello!")], [WEATHER, TIDE]),
    "tools without system": Chat([ASK, CALL, RESULT, TELL], [WEATHER]),
    "call": Chat([SYSTEM, ASK, CALL, RESULT, TELL], [WEATHER]),
    "call without tools": Chat([ASK, CALL, RESULT, TELL], None),
    "call to learn": Chat([ASK, CALL], [WEATHER]),
    "text and call": Chat([ASK, {**CALL, "content": "Let me look that up."}, RESULT, TELL], [WEATHER]),
    "two calls": Chat(
        [
            SYSTEM,
            say("user", "What is the weather in Oslo, and the tide?"),
            say(
                "assistant",
                "",
                tool_calls=[call("a1b2c3d4e", "weather", city="Oslo"), call("f5g6h7i8j", "tide", harbour="Ås", days=2)],
            ),
            RESULT,
            say("tool", '{"high": ["06:12", "18:40"]}', tool_call_id="f5g6h7i8j"),
            say("assistant", "Sunny; high tide is at 06:12 and 18:40."),
        ],
        [WEATHER, TIDE],
    ),
    "calls in two turns": Chat(
        [
            ASK,
            CALL,
            RESULT,
            TELL,
            say("user", "And the tide?"),
            say("assistant", "", tool_calls=[call("k9l0m1n2o", "tide", harbour="Oslo")]),
            say("tool", "at 06:12", tool_call_id="k9l0m1n2o"),
            say("assistant", "High at 06:12."),
        ],
        [WEATHER, TIDE],
    ),
    "call after call": Chat(
        [
            ASK,
            CALL,
            RESULT,
            say("assistant", "", tool_calls=[call("k9l0m1n2o", "tide", harbour="Oslo")]),
            say("tool", "at 06:12", tool_call_id="k9l0m1n2o"),
            TELL,
        ],
        [WEATHER, TIDE],
    ),
    "reasoning": Chat([ASK, {**TELL, "reasoning_content": "They ask for Oslo.\nIt is sunny there."}], None),
    "reasoning in two turns": Chat(
        [
            ASK,
            {**TELL, "reasoning_content": "They ask for Oslo."},
            say("user", "And in Bergen?"),
            say("assistant", "Rain.", reasoning_content="It always rains."),
        ],
        None,
    ),
    "reasoning before a call": Chat([ASK, {**CALL, "reasoning_content": "I must look."}, RESULT, TELL], [WEATHER]),
    "system later": Chat(
        [ASK, TELL, say("system", "Be brief now."), say("user", "Bergen?"), say("assistant", "Rain.")], None
    ),
    "assistant first": Chat([say("assistant", "Ahoy!"), say("user", "Hello."), say("assistant", "What is it?")], None),
}
