"""What ends a task: a fault that the user can act on."""

from worker.prepare.folder import TaskError


class Refused(Exception):
    """The user's data or options are wrong."""

    def __init__(self, error: TaskError) -> None:
        super().__init__(error.message)
        self.error = error


def refuse(code: str, message: str, param: str, lines: list[int] | None = None) -> Refused:
    return Refused(TaskError(code=code, message=message, param=param, lines=lines or []))
