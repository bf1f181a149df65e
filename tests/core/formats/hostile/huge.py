"""Files made to take memory or time: long lines, a million faults in a row, walks that could be quadratic, bombs.

Each is made as it is read, ten megabytes or more; the bombs are small and would unpack to gigabytes.
"""

import gzip
import zlib
from collections.abc import Iterator

from core.formats.parse import MAX_LINE_BYTES
from core.formats.report import Code
from tests.core.formats.hostile.case import Bad, Where
from tests.core.formats.hostile.files import parquet, zstd
from tests.core.formats.hostile.good import CHAT, TEXT, dump

MIB = 1024 * 1024
SIZE = 10_000_000
GOOD = dump(TEXT) + b"\n"


def times(piece: bytes, size: int = SIZE) -> Iterator[bytes]:
    """A piece over and over, a megabyte or so at a time."""
    block = piece * max(1, MIB // len(piece))
    for _ in range(max(1, size // len(block))):
        yield block


def filled(head: bytes, piece: bytes, tail: bytes, size: int = MAX_LINE_BYTES) -> bytes:
    """A line of just about as many bytes as it may have."""
    return head + piece * ((size - len(head) - len(tail)) // len(piece)) + tail


def lines(line: bytes, size: int = SIZE) -> Iterator[bytes]:
    for _ in range(-(-size // (len(line) + 1))):
        yield line + b"\n"


def _long() -> Iterator[Bad]:
    def line(end: bytes) -> Iterator[bytes]:
        yield GOOD + b'{"text": "'
        yield from times(b"a", 100 * MIB)
        yield end

    too_long: list[Where] = [(2, "", Code.LINE_TOO_LONG)]
    yield Bad("a line of 100 MB", lambda: line(b'"}\n' + GOOD), too_long)
    yield Bad("a line of 100 MB that never ends", lambda: line(b""), too_long)
    yield Bad("a record of 100 MB", _array_of_long, too_long)
    yield Bad("100 MB without a line break", lambda: times(b"a", 100 * MIB), [(1, "", Code.LINE_TOO_LONG)])
    yield Bad("100 MB of zeros", lambda: times(b"\0", 100 * MIB), [(1, "", Code.LINE_TOO_LONG)])
    yield Bad("100 MB of blanks", lambda: times(b" ", 100 * MIB), [(1, "", Code.LINE_TOO_LONG)])
    yield Bad("a cell of 100 MB", lambda: [b"text\n", *times(b"a", 100 * MIB)], [(2, "", Code.LINE_TOO_LONG)])
    yield Bad("a quoted cell of 100 MB", lambda: [b'text\n"', *times(b"a\n", 100 * MIB)], [(2, "", Code.INVALID_CSV)])


def _array_of_long() -> Iterator[bytes]:
    yield b"[" + dump(TEXT) + b', {"text": "'
    yield from times(b"a", 100 * MIB)
    yield b'"}]'


def _many() -> Iterator[Bad]:
    yield Bad("line breaks", lambda: times(b"\n"), [(0, "", Code.EMPTY_FILE)])
    yield Bad("blank lines", lambda: times(b" \r\n"), [(0, "", Code.EMPTY_FILE)])
    yield Bad("rows of one brace", lambda: times(b"{\n"), [(1, "", Code.INVALID_JSON)], more=True)
    yield Bad("rows of one digit", lambda: times(b"1\n"), [(1, "", Code.NOT_AN_OBJECT)], more=True)
    yield Bad("rows of nothing known", lambda: times(b"{}\n"), [(1, "", Code.UNKNOWN_FORMAT)], more=True)
    yield Bad(
        "an array of empty objects", lambda: [b"[", *times(b"{},"), b"{}]"], [(1, "", Code.UNKNOWN_FORMAT)], more=True
    )
    yield Bad("an array of commas", lambda: [b"[", *times(b","), b"]"], [(1, "", Code.INVALID_JSON)], more=True)
    yield Bad("an array in arrays", lambda: times(b"["), [(1, "", Code.TOO_DEEP)])
    yield Bad("a CSV of empty cells", lambda: [b"text\n", *times(b'""\n')], [(2, "text", Code.EMPTY)], more=True)
    yield Bad("a CSV of commas", lambda: [b"text\n", *times(b",")], [(2, "", Code.LINE_TOO_LONG)], more=True)
    yield Bad("a CSV of quotes", lambda: [b"text\n", *times(b'"')], [(2, "", Code.LINE_TOO_LONG)], more=True)
    yield Bad(
        "a CSV header of a million columns",
        lambda: [b"text", *times(b",a", 2 * MIB), b"\n", GOOD],
        [(2, "", Code.INVALID_CSV)],
    )
    # As many good rows as bad ones, so that nobody gives up.
    yield Bad(
        "a bad row after each good one",
        lambda: times(GOOD + b'{"text": 1}\n'),
        [(2, "text", Code.WRONG_TYPE)],
        more=True,
    )
    yield Bad(
        "NaN after each good row", lambda: times(dump(CHAT) + b'\n{"text": NaN}\n'), [(2, "", Code.NAN)], more=True
    )
    yield Bad(
        "no UTF-8 after each good row", lambda: times(dump(CHAT) + b"\n\xff\n"), [(2, "", Code.NOT_UTF8)], more=True
    )


def _in_one_row() -> Iterator[Bad]:
    def rows(name: str, line: bytes, path: str, code: Code, more: bool = True) -> Bad:
        return Bad(name, lambda: lines(line), [(1, path, code)], more=more)

    messages = b'{"messages": ['
    yield rows("a million messages that are none", filled(messages, b"{},", b"{}]}"), "", Code.TOO_COMPLEX)
    yield rows(
        "a million messages that are numbers", filled(messages, b"1,", b"1]}"), "messages", Code.TOO_MANY_MESSAGES
    )
    yield rows(
        "a million unknown fields",
        _fields(b'{"messages": [{"role": "user", "content": "a",', b"]}"),
        "messages[0].0",
        Code.UNKNOWN_FIELD,
    )
    yield rows("a million fields nobody knows", _fields(b"{", b""), "", Code.UNKNOWN_FORMAT)
    yield rows(
        "a million parts",
        filled(b'{"messages": [{"role": "user", "content": [', b"1,", b"1]}]}"),
        "messages[0].content[0]",
        Code.WRONG_TYPE,
    )
    yield rows("a million tools", filled(b'{"messages": [], "tools": [', b"1,", b"1]}"), "tools[0]", Code.INVALID_TOOL)
    yield rows(
        "a million calls that are none",
        filled(b'{"messages": [{"role": "assistant", "tool_calls": [', b"1,", b"1]}]}"),
        "messages[0].tool_calls[0]",
        Code.INVALID_TOOL_CALL,
    )
    calls = b"".join(
        b'{"id":"%d","type":"function","function":{"name":"a","arguments":"{}"}},' % n for n in range(19_000)
    )
    results = b"".join(b'{"role":"tool","tool_call_id":"%d","content":""},' % n for n in range(19_000))
    asked = messages + b'{"role": "assistant", "tool_calls": [' + calls[:-1] + b"]},"
    user = b'{"role":"user","content":""}]}'
    yield rows(
        "nineteen thousand calls without results",
        asked + user,
        "messages[0].tool_calls[0]",
        Code.TOOL_CALL_WITHOUT_RESULT,
    )
    yield rows(
        "nineteen thousand calls and results",
        asked + results + user,
        "messages[19001].role",
        Code.LAST_MESSAGE_NOT_ASSISTANT,
        more=True,
    )
    yield rows(
        "results of nineteen thousand calls that weren't made",
        messages + results + user,
        "messages[0].tool_call_id",
        Code.TOOL_RESULT_WITHOUT_CALL,
    )
    old = b'{"role":"function","name":"a","content":""},'
    yield rows(
        "old results after many calls", asked + old * 19_000 + user, "messages[1].role", Code.TOOL_RESULT_WITHOUT_CALL
    )
    yield rows(
        "a hundred thousand turns that are none",
        filled(b'{"conversations": [', b"{},", b"{}]}", MIB // 2),
        "conversations",
        Code.TOO_MANY_MESSAGES,
    )
    yield rows(
        "a million turns that are numbers",
        filled(b'{"conversations": [', b"1,", b"1]}"),
        "conversations",
        Code.TOO_MANY_MESSAGES,
    )
    yield rows(
        "many turns that end with a question",
        filled(b'{"conversations": [', b'{"from":"human","value":""},', b'{"from":"human","value":""}]}'),
        "conversations",
        Code.TOO_MANY_MESSAGES,
    )
    call = b'{"from":"function_call","value":"[' + b'{\\"name\\":\\"a\\"},' * 18_999 + b'{\\"name\\":\\"a\\"}]"},'
    observed = b'{"from":"observation","value":""},' * 19_000
    yield rows(
        "nineteen thousand observations",
        b'{"conversations": [' + call + observed + b'{"from":"human","value":""}]}',
        "conversations[19001].from",
        Code.LAST_MESSAGE_NOT_ASSISTANT,
    )
    yield rows(
        "a million turns of alpaca's history",
        filled(b'{"instruction": "a", "output": 1, "history": [', b"1,", b"1]}"),
        "history",
        Code.TOO_MANY_MESSAGES,
    )
    yield rows(
        "a prompt of a million numbers",
        filled(b'{"prompt": [', b"1,", b'1], "completion": "a"}'),
        "prompt",
        Code.TOO_MANY_MESSAGES,
    )
    key = b"k" * (MAX_LINE_BYTES // 2)
    path = "messages[0]." + "k" * 188 + "…"
    yield rows(
        "a field with a name of two megabytes",
        messages + b'{"role":"user","content":"a","' + key + b'":1}]}',
        path,
        Code.UNKNOWN_FIELD,
    )
    below = b'{"text": "a", "' + key + b'": [' + b"0," * (MAX_LINE_BYTES // 8) + b'"\\u0000"]}'
    yield rows("a NUL far below a name of two megabytes", below, "k" * 200 + "…", Code.NUL)
    yield rows(
        "a text twice after a million numbers",
        filled(b'{"n": [', b"0,", b'0], "text": "a", "text": "b"}'),
        "text",
        Code.DUPLICATE_KEY,
    )
    yield rows(
        "two hundred thousand objects with a key twice",
        filled(b'{"text": "a", "n": [', b'{"a":0,"a":0},', b"0]}", 3 * MIB),
        "n[0].a",
        Code.DUPLICATE_KEY,
    )
    yield rows("a million escaped quotes", filled(b'{"text": 1, "n": "', b'\\"', b'"}'), "text", Code.WRONG_TYPE)
    yield rows("a million backslashes", filled(b'{"text": 1, "n": "', b"\\\\", b'"}'), "text", Code.WRONG_TYPE)
    yield rows("a million escapes", filled(b'{"text": 1, "n": "', b"\\u0041", b'"}'), "text", Code.WRONG_TYPE)
    yield rows("a million lists", filled(b'{"text": 1, "n": [', b"[],", b"[]]}"), "", Code.TOO_COMPLEX)
    yield rows("a million objects", filled(b'{"text": 1, "n": [', b'{"":[]},', b"[]]}"), "", Code.TOO_COMPLEX)
    yield rows(
        "towers of lists", filled(b'{"text": 1, "n": [', b"[" * 60 + b"]" * 60 + b",", b"[]]}"), "", Code.TOO_COMPLEX
    )
    yield rows(
        "a quarter of a million objects",
        filled(b'{"text": 1, "n": [', b'{"":[],"a":[]},', b"[]]}", MIB),
        "text",
        Code.WRONG_TYPE,
    )
    yield rows(
        "towers that are too high",
        filled(b'{"text": 1, "n": [', b"[" * 900 + b"]" * 900 + b",", b"[]]}"),
        "",
        Code.TOO_DEEP,
    )
    yield rows(
        "a million strings that look like rows",
        filled(b'{"text": 1, "n": "', b'{\\"text\\": [', b'"}'),
        "text",
        Code.WRONG_TYPE,
    )
    yield rows(
        "a role of four megabytes",
        filled(b'{"messages": [{"content": "a", "role": "', b"a", b'"}]}'),
        "messages[0].role",
        Code.UNKNOWN_ROLE,
    )
    yield rows(
        "arguments of four megabytes",
        filled(
            b'{"messages": [{"role":"assistant","tool_calls":'
            b'[{"id":"a","type":"function","function":{"name":"a","arguments":"',
            b"[",
            b'"}}]}]}',
        ),
        "messages[0].tool_calls[0].function.arguments",
        Code.INVALID_ARGUMENTS,
    )


def _fields(head: bytes, tail: bytes) -> bytes:
    """An object of as many fields as a line can have, each with another name."""
    count = (MAX_LINE_BYTES - 100) // 10
    return head + b",".join(b'"%x":1' % number for number in range(count)) + b"}" + tail


def _bombs() -> Iterator[Bad]:
    too_large: list[Where] = [(0, "", Code.UNPACKED_TOO_LARGE)]
    # Compressed files may follow each other in one file: 16 MiB of zeros, a thousand times.
    member = gzip.compress(bytes(16 * MIB), 9)
    yield Bad("a gzip bomb of zeros", lambda: [member] * 100, too_large, more=True)
    rows = gzip.compress((dump({"text": "a" * 2000}) + b"\n") * 10_000, 9)
    yield Bad("a gzip bomb of good rows", lambda: [rows] * 50, too_large)
    yield Bad("a gzip bomb in gzip", lambda: [gzip.compress(member * 100)], [(0, "", Code.UNSUPPORTED_FILE)])
    frame = zstd(bytes(16 * MIB))
    yield Bad("a zstd bomb of zeros", lambda: [frame] * 100, too_large, more=True)
    frames = zstd((dump({"text": "a" * 2000}) + b"\n") * 10_000)
    yield Bad("a zstd bomb of good rows", lambda: [frames] * 50, too_large)
    yield Bad(
        "a gzip bomb of an array",
        lambda: [gzip.compress(b"[" + (dump({"text": "a" * 2000}) + b",") * 100_000, 9)],
        too_large,
    )
    yield Bad("a Parquet bomb", lambda: [_parquet_bomb()], too_large)
    yield Bad(
        "a bomb of zlib's own format", lambda: [zlib.compress(bytes(16 * MIB))], [(1, "", Code.NOT_UTF8)], more=True
    )


def _parquet_bomb() -> bytes:
    """A text of a megabyte, kept once, for each of 16,384 rows."""
    import pyarrow

    text = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 16_384, pyarrow.int32()), ["a" * MIB])
    return parquet(text=text)


def cases() -> Iterator[Bad]:
    for part in (_long, _many, _in_one_row, _bombs):
        for bad in part():
            yield bad._replace(huge=True)
