"""Mutations of the corpus of bad files, a few hundred, from a seed; ``make fuzz`` makes a million, led by coverage."""

import random
from pathlib import Path

from tests.fuzz.data import examine
from tests.fuzz.guided import seeds

EXECUTIONS = 600


def test_no_bytes_break_the_checker_or_what_is_true_of_its_reports(tmp_path: Path) -> None:
    rng = random.Random(4)
    corpus = [seed for seed in seeds() if len(seed) < 4000]
    for number in range(EXECUTIONS):
        data = mutated(rng, corpus)
        try:
            examine(data, tmp_path / "file")
        except Exception as error:
            raise AssertionError(f"execution {number}: {data!r}") from error


def mutated(rng: random.Random, corpus: list[bytes]) -> bytes:
    data = bytearray(rng.choice(corpus))
    for _ in range(rng.randint(0, 3)):
        at, other = rng.randint(0, len(data)), rng.choice(corpus)
        begin = rng.randint(0, len(other))
        match rng.randrange(4):
            case 0:
                del data[at : at + rng.randint(1, 20)]
            case 1:
                data[at:at] = other[begin : begin + rng.randint(1, 200)]
            case 2:
                data[at : at + 1] = rng.randbytes(1)
            case _:
                data[at:] = other[begin:]
    return bytes(data)
