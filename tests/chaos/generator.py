"""What a trial does: the job it submits, and which process is struck at which moment: all from a seed."""

from dataclasses import dataclass
from random import Random
from typing import Any, Literal

from tests.conftest import chat_rows, preference_rows

TARGETS = ("api", "supervisor", "trainer", "reconciler", "redis", "postgres")


@dataclass(frozen=True)
class Moment:
    """``seconds`` after the blow before it, or as soon as the job is there, whichever ``where`` names."""

    where: Literal["seconds", "preparing", "starting", "step", "saving", "checkpoint", "artifact", "publishing"]
    number: float = 0.0
    """Seconds; the part of all steps; which request of an upload is in flight."""

    def __str__(self) -> str:
        return f"{self.where}:{self.number:g}"


@dataclass(frozen=True)
class Blow:
    target: str
    """One of TARGETS, or what else a trial of its own sort does."""
    moment: Moment
    down: float
    """Seconds until the process is started again."""
    late: bool = False
    """A request that was in flight arrives after its sender's death, instead of never."""

    def __str__(self) -> str:
        return f"{self.target}@{self.moment}"


@dataclass(frozen=True)
class Work:
    """A kind of job, small and yet with everything that makes a resume hard."""

    name: str
    method: dict[str, Any]
    ext: dict[str, Any]
    steps: int
    pairs: bool = False

    def rows(self, mark: int) -> bytes:
        """The same rows for every mark, in a file of its own: equal content would not be prepared again."""
        rows = preference_rows(32) if self.pairs else chat_rows(160)
        return rows + b" " * mark + b"\n" if mark else rows

    def validation(self) -> bytes | None:
        return chat_rows(24) if self.name == "lora" else None


def _method(type: str, batch: int, epochs: int) -> dict[str, Any]:
    return {"type": type, type: {"hyperparameters": {"n_epochs": epochs, "batch_size": batch}}}


WORKS = (
    # Dropout: a random state that is not restored shows in every later number. Two micro-batches a step.
    Work(
        "lora",
        _method("supervised", 4, 3),
        {
            "lora": {"rank": 4, "dropout": 0.1},
            "micro_batch_size": 2,
            "checkpoints": {"every": 12, "keep": "all"},
        },
        120,
    ),
    # Checkpoints that are removed again while it trains.
    Work(
        "full",
        _method("supervised", 4, 2),
        {
            "adapter": "full",
            "optim": {"learning_rate": 1e-4},
            "checkpoints": {"every": 10, "keep": {"last": 2}},
        },
        80,
    ),
    Work("dpo", _method("dpo", 2, 4), {"lora": {"rank": 4, "dropout": 0.05}}, 64, pairs=True),
)
SHORT = Work("short", _method("supervised", 16, 1), {"lora": {"rank": 2}}, 10)


@dataclass(frozen=True)
class Trial:
    number: int
    work: Work
    mark: int
    """0: data that were prepared before."""
    blows: tuple[Blow, ...]
    cancel: Moment | None = None
    asleep: Moment | None = None
    """When its owner is stopped."""

    def __str__(self) -> str:
        cancel = f", cancel@{self.cancel}" if self.cancel else ""
        asleep = f"asleep@{self.asleep}" if self.asleep else ""
        return f"trial {self.number}: {self.work.name}, {' '.join(map(str, self.blows))}{cancel}{asleep}"


def trial(seed: int, number: int) -> Trial:
    random = Random(f"{seed}/{number}")
    blows = [_blow(random) for _ in range(random.choice((1, 2, 2, 3)))]
    # Every kind of process is struck first in turn, so that none is spared by chance.
    first = TARGETS[number % len(TARGETS)]
    blows[0] = Blow(first, blows[0].moment, blows[0].down, blows[0].late)
    return Trial(
        number=number,
        work=WORKS[number % len(WORKS)] if random.random() < 0.5 else random.choice(WORKS),
        mark=number if random.random() < 0.4 else 0,
        blows=tuple(blows),
        cancel=_moment(random) if random.random() < 0.1 else None,
    )


GONE = 1000.0
"""Seconds: a process that does not come back before its trial is over."""


def _named() -> dict[str, Trial]:
    """Trials that strike where chance seldom does; the mutants are shown to them."""
    lora = WORKS[0]

    def blows(number: int, *blows: Blow) -> Trial:
        return Trial(number, lora, 0, blows)

    cancels = {
        f"cancel-{moment.where}": Trial(30_100 + n, lora, 30_100 + n if moment.where == "preparing" else 0, (), moment)
        for n, moment in enumerate(
            (
                Moment("preparing"),
                Moment("starting"),
                Moment("step", 0.3),
                Moment("checkpoint", 2),
                Moment("saving"),
                Moment("artifact", 2),
            )
        )
    }
    return {
        "quiet": blows(30_001),
        "trainer-dies": blows(30_002, Blow("trainer", Moment("step", 0.5), 0)),
        # Its machine is gone for good: nobody of that name takes the row back.
        "machine-dies": blows(30_003, Blow("supervisor", Moment("step", 0.4), GONE)),
        "upload-dies": blows(30_004, Blow("supervisor", Moment("checkpoint", 3), 0)),
        "artifact-dies": blows(30_005, Blow("supervisor", Moment("artifact", 3), 0, late=True)),
        **cancels,
    }


NAMED = _named()


def _blow(random: Random) -> Blow:
    # Those that own the job are worth more blows than the others.
    target = random.choice((*TARGETS, "supervisor", "trainer"))
    # Down for longer than a lease, now and then: somebody else must find out and go on.
    down = random.choice((0.0, 0.0, 0.5, 2.0, 9.0 if target in ("supervisor", "reconciler") else 1.0))
    return Blow(target, _moment(random), down, random.random() < 0.5)


def _moment(random: Random) -> Moment:
    match random.choice(("seconds", "seconds", "seconds", "preparing", "starting", "step", "step", "save", "up", "up")):
        case "preparing":
            return Moment("preparing")
        case "starting":
            return Moment("starting")
        case "step":
            return Moment("step", round(random.random(), 2))
        case "save":
            return Moment("saving", random.randint(1, 3))
        case "up":
            # Four files a checkpoint and its manifest, several checkpoints; about a dozen requests for an artifact.
            if random.random() < 0.6:
                return Moment("checkpoint", random.randint(1, 20))
            return random.choice((Moment("artifact", random.randint(1, 9)), Moment("publishing")))
        case _:
            return Moment("seconds", round(random.uniform(0, 5), 2))
