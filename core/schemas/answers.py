"""What a question about data is told while it is worked on."""

from typing import Literal

from pydantic import BaseModel

from core.states import AnswerKind


class Pending(BaseModel):
    id: str
    object: Literal["answer"] = "answer"
    kind: AnswerKind
    status: Literal["in_progress"] = "in_progress"
