"""What stops a run: a fault the user can act on, a checkpoint that can't be trusted, a request to hand the job back.

Stop
├── Refused            error event, exit 3
│   └── Diverged       the same; the event names the last good checkpoint
├── CheckpointRefused  error message event, exit 5: another checkpoint may do
└── Drained            a recovery checkpoint has been written, exit 4
"""


class Stop(Exception):
    pass


class Refused(Stop):
    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param


class Diverged(Refused):
    def __init__(self, message: str, good_step: int) -> None:
        super().__init__("diverged", message, "learning_rate")
        self.good_step = good_step


class CheckpointRefused(Stop):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Drained(Stop):
    pass
