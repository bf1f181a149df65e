"""Exit statuses, and the one place that turns an exception into a message and a status."""

import sys
from collections.abc import Callable
from enum import IntEnum


class Exit(IntEnum):
    OK = 0
    FAILED = 1
    """The service refused or can't be reached, or a file is wrong."""
    USAGE = 2
    JOB_FAILED = 3
    JOB_CANCELLED = 4
    INTERRUPTED = 130


HELP = (
    "Exit status: 0 done; 1 failed or refused; 2 wrong usage; 3 the job (or the registration of a model) failed; "
    "4 the job was cancelled; 130 interrupted."
)


class Refused(Exception):
    """A command can't do what was asked; the message is for the person at the terminal."""

    def __init__(self, message: str, status: Exit = Exit.FAILED) -> None:
        super().__init__(message)
        self.status = status


def run(command: Callable[[], object]) -> int:
    """Run the command line and give its exit status; known failures become one sentence on stderr."""
    # Imported here: the SDK takes a second to import, and `attune --help` should not.
    from cli.stack.errors import StackError

    try:
        command()
    except Refused as refused:
        return complain(str(refused), refused.status)
    except StackError as error:
        return complain(str(error), Exit.FAILED)
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        sys.stderr.close()
        return Exit.OK
    except Exception as error:
        openai = sys.modules.get("openai")
        if openai is not None and isinstance(error, openai.APIError):
            return complain(api_message(error), Exit.FAILED)
        raise
    return Exit.OK


def api_message(error: Exception) -> str:
    """The server's own sentence, without the SDK's rendering of the whole body."""
    body = getattr(error, "body", None)
    if isinstance(body, dict) and isinstance(body.get("message"), str):
        param = body.get("param")
        return f"{body['message']} ({param})" if param else str(body["message"])
    request = getattr(error, "request", None)
    if getattr(error, "status_code", None) is None and request is not None:
        return f"{request.url.scheme}://{request.url.netloc.decode()} does not answer: {error} Is the stack up?"
    return str(error)


def complain(message: str, status: Exit) -> int:
    print(f"attune: {message}", file=sys.stderr)
    return status
