"""Whose templates ours are judged by, and why some of them write some conversations differently."""

from fnmatch import fnmatchcase
from typing import NamedTuple

from tests.core.formats.conversations import CONVERSATIONS


class Peer(NamedTuple):
    """``package`` and the name that the template has there; ``marks``: whether it tells what is learned."""

    package: str
    name: str
    family: str
    marks: bool = True

    def __str__(self) -> str:
        return f"{self.package}: {self.name}"


PEERS = (
    Peer("trl", "qwen3_instruct_2507_training", "chatml"),
    Peer("trl", "qwen2_5_training", "chatml"),
    Peer("trl", "qwen3", "chatml", marks=False),
    Peer("llamafactory", "qwen3_nothink", "chatml"),
    Peer("llamafactory", "chatml", "chatml"),
    Peer("trl", "llama3_training", "llama3"),
    Peer("trl", "llama3_1", "llama3", marks=False),
    Peer("llamafactory", "llama3", "llama3"),
    Peer("trl", "gemma3_training", "gemma3"),
    Peer("llamafactory", "gemma3", "gemma3"),
    Peer("trl", "phi3_training", "phi"),
    Peer("trl", "phi3_5_training", "phi"),
    Peer("llamafactory", "phi", "phi"),
    Peer("llamafactory", "phi4", "phi4"),
    Peer("llamafactory", "granite3", "granite"),
    Peer("llamafactory", "granite4", "granite"),
    Peer("trl", "deepseekv3_training", "deepseek"),
    Peer("trl", "deepseek_r1_distill_training", "deepseek"),
    Peer("llamafactory", "deepseek3", "deepseek"),
    Peer("mistral-common", "v7", "mistral", marks=False),
    Peer("llamafactory", "mistral_small", "mistral"),
    Peer("mistral-common", "v3 tekken", "mistral_v3", marks=False),
    Peer("llamafactory", "ministral", "mistral_v3"),
)


class Difference(NamedTuple):
    """``peer`` may be a pattern."""

    peer: str
    aspect: str
    conversations: tuple[str, ...]
    why: str


ALL = tuple(CONVERSATIONS)
CALLS = tuple(name for name in ALL if "call" in name or name == "tools without system")
THOUGHTS = tuple(name for name in ALL if "reasoning" in name)
NO_THOUGHTS = "it has no place for reasoning, which is left out"
OWN_SYSTEM = "a system text of its own is put before conversations that begin without one"
OWN_WORDS = "it has no format for tools there: calls and results are put into words of its own"
LATE_TOOLS = "the tools are described before the last question, which rewrites the history with every turn"
POOR_RESULTS = "tools stand inside the text beside them, calls have no ids, results are no good JSON"
DIFFERENCES = (
    Difference("trl: qwen3_instruct_2507_training", "text", THOUGHTS, NO_THOUGHTS),
    Difference("trl: qwen3_instruct_2507_training", "learned", THOUGHTS, NO_THOUGHTS),
    Difference("trl: qwen2_5_training", "text", THOUGHTS, NO_THOUGHTS),
    Difference(
        "trl: qwen2_5_training",
        "text",
        ALL,
        OWN_SYSTEM,
    ),
    Difference("trl: qwen2_5_training", "learned", ALL, "the line break of the header is learned with the answer"),
    Difference(
        "trl: qwen3", "text", ALL, "an empty thought is put before the last answer, earlier thoughts are left out"
    ),
    Difference("trl: llama3_training", "text", CALLS, "it has no place for tools: calls are left out"),
    Difference("trl: llama3_training", "learned", CALLS, "it has no place for tools: calls are left out"),
    Difference("trl: llama3_training", "text", THOUGHTS, NO_THOUGHTS),
    Difference("trl: llama3_training", "learned", THOUGHTS, NO_THOUGHTS),
    Difference(
        "trl: llama3_1",
        "text",
        ALL,
        "a system turn with two dates is always written, results are JSON strings, text beside a call is left out",
    ),
    Difference("llamafactory: llama3", "text", ("white space",), "text is not trimmed, as Llama's own template does"),
    Difference("trl: gemma3_training", "text", CALLS, "it has no place for tools: calls are left out"),
    Difference("trl: gemma3_training", "learned", CALLS, "it has no place for tools: calls are left out"),
    Difference("trl: gemma3_training", "text", THOUGHTS, NO_THOUGHTS),
    Difference("trl: gemma3_training", "learned", THOUGHTS, NO_THOUGHTS),
    Difference("llamafactory: gemma3", "text", ("white space",), "text is not trimmed, as Gemma's own template does"),
    Difference(
        "trl: phi3*",
        "text",
        ALL,
        "the end-of-sequence token is put after the last turn, so that no beginning of the "
        "conversation is a beginning of its text; tools, calls and reasoning are left out",
    ),
    Difference("trl: phi3*", "learned", ALL, "the end-of-sequence token after the last turn is learned"),
    Difference("llamafactory: granite4", "text", CALLS, OWN_WORDS),
    Difference("llamafactory: granite4", "text", ALL, OWN_SYSTEM),
    Difference("trl: deepseekv3_training", "text", THOUGHTS, NO_THOUGHTS),
    Difference(
        "trl: deepseekv3_training",
        "text",
        CALLS,
        "from the second call of a conversation on, header and opening tokens are missing",
    ),
    Difference("trl: deepseek*", "text", ("system later",), "system texts are gathered at the beginning"),
    Difference("trl: deepseek*", "learned", ALL, "the answer's header, or the end of the results, is learned with it"),
    Difference("trl: deepseek_r1_distill_training", "text", CALLS, "a call is only written where the content is null"),
    Difference("trl: deepseek_r1_distill_training", "text", THOUGHTS, NO_THOUGHTS),
    Difference("mistral-common*", "text", ("calls in two turns",), LATE_TOOLS),
    Difference(
        "mistral-common: v3 tekken",
        "text",
        ("turns", "weights"),
        "the system text opens the last question, not the first, which rewrites the history with every turn",
    ),
    Difference(
        "mistral-common: v3 tekken",
        "text",
        ("two calls",),
        "a result that is JSON is put in as such; a template can't read JSON",
    ),
    Difference("mistral-common: v3 tekken", "text", ("assistant first",), "an empty question is put first"),
    Difference("llamafactory: mistral_small", "text", CALLS, POOR_RESULTS),
    Difference("llamafactory: mistral_small", "learned", CALLS, POOR_RESULTS),
    Difference("llamafactory: ministral", "text", CALLS, POOR_RESULTS),
    Difference("llamafactory: ministral", "learned", CALLS, POOR_RESULTS),
    Difference("llamafactory*", "text", ("empty system",), "an empty system text counts as none"),
    Difference("llamafactory*", "text", CALLS, OWN_WORDS),
    Difference("llamafactory*", "learned", CALLS, OWN_WORDS),
)
"""The first that fits is the reason."""


def why(peer: Peer, aspect: str, name: str) -> str:
    for difference in DIFFERENCES:
        if fnmatchcase(str(peer), difference.peer) and difference.aspect == aspect and name in difference.conversations:
            return difference.why
    return ""
