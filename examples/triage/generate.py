"""Writes the example task: a customer's message in, a strict JSON triage record out. Standard library only.

    python examples/triage/generate.py [--seed N] [--to DIR]

The same seed gives the same bytes on every Python version: only ``Random.random`` is used, which is guaranteed.
"""

import argparse
import json
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, TypeVar

HERE = Path(__file__).parent
SEED = 7
SIZES = {"train": 300, "valid": 40, "held_out": 60}
TEAMS = ("billing", "delivery", "technical", "account")
PRIORITIES = ("urgent", "normal", "low")
# In characters of the message. With Gemma's tokenizer a whole row is then 48 to 66 tokens.
SHORTEST, LONGEST = 92, 132

T = TypeVar("T")
Row = dict[str, list[dict[str, str]]]


@dataclass(frozen=True)
class Phrases:
    """What one split may say; see ``phrases.toml``."""

    products: tuple[str, ...]
    amounts: tuple[str, ...]
    greetings: tuple[str, ...]
    refund: tuple[str, ...]
    other: tuple[str, ...]
    urgent: tuple[str, ...]
    low: tuple[str, ...]
    problems: dict[str, tuple[str, ...]]

    @property
    def templates(self) -> set[str]:
        problems = {problem for team in TEAMS for problem in self.problems[team]}
        return problems.union(self.greetings, self.refund, self.other, self.urgent, self.low)


def load(path: Path = HERE / "phrases.toml") -> dict[str, Phrases]:
    def phrases(table: dict[str, Any]) -> Phrases:
        problems = {team: tuple(lines) for team, lines in table.pop("problems").items()}
        return Phrases(problems=problems, **{name: tuple(lines) for name, lines in table.items()})

    return {split: phrases(table) for split, table in tomllib.loads(path.read_text("utf-8")).items()}


def shuffled(rng: Random, of: Iterable[T]) -> list[T]:
    cards = list(of)
    for last in range(len(cards) - 1, 0, -1):
        other = int(rng.random() * (last + 1))
        cards[last], cards[other] = cards[other], cards[last]
    return cards


class Deck:
    """Deals the phrases of a split: each list to its end in a random order before it starts again."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.left: dict[tuple[str, ...], list[str]] = {}

    def deal(self, phrases: tuple[str, ...]) -> str:
        if not self.left.get(phrases):
            self.left[phrases] = shuffled(self.rng, phrases)
        return self.left[phrases].pop()


def message(deck: Deck, phrases: Phrases, team: str, priority: str, refund: bool, product: str) -> str:
    problem = deck.deal(phrases.problems[team]).format(product=product, amount=deck.deal(phrases.amounts))
    parts = [problem + ".", deck.deal(phrases.refund if refund else phrases.other)]
    if priority != "normal":
        pressure = deck.deal(phrases.urgent if priority == "urgent" else phrases.low)
        # Before, between or after the other two.
        parts.insert(int(deck.rng.random() * 3), pressure)
    text = " ".join(parts)
    return text if len(text) >= SHORTEST else f"{deck.deal(phrases.greetings)} {text}"


def row(text: str, team: str, priority: str, refund: bool, product: str) -> Row:
    record = {"team": team, "priority": priority, "product": product, "refund": refund}
    answer = json.dumps(record, separators=(",", ":"))
    return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]}


def rows(rng: Random, phrases: Phrases, count: int) -> list[Row]:
    """Teams and priorities take turns, so each split is balanced; no message comes twice."""
    deck = Deck(rng)
    made: dict[str, Row] = {}
    while len(made) < count:
        turn = len(made)
        team = TEAMS[turn % len(TEAMS)]
        priority = PRIORITIES[turn // len(TEAMS) % len(PRIORITIES)]
        # Nobody asks for money because of a forgotten password.
        refund = team != "account" and rng.random() < 0.5
        product = deck.deal(phrases.products)
        text = message(deck, phrases, team, priority, refund, product)
        if SHORTEST <= len(text) <= LONGEST:
            made.setdefault(text, row(text, team, priority, refund, product))
    return shuffled(rng, made.values())


def generate(seed: int = SEED) -> dict[str, list[Row]]:
    return {split: rows(Random(f"{seed} {split}"), phrases, SIZES[split]) for split, phrases in load().items()}


def write(data: dict[str, list[Row]], to: Path) -> None:
    for split, made in data.items():
        lines = (json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in made)
        (to / f"{split}.jsonl").write_bytes("".join(lines).encode())


def ngrams(made: list[Row], n: int) -> set[tuple[str, ...]]:
    texts = (line["messages"][0]["content"].lower().split() for line in made)
    return {tuple(words[at : at + n]) for words in texts for at in range(len(words) - n + 1)}


def overlap(data: dict[str, list[Row]]) -> dict[str, float]:
    """What the held-out rows have in common with the training rows: counts, and shares of distinct word n-grams."""
    phrases = load()
    train, held_out = phrases["train"], phrases["held_out"]
    said, asked = (
        [{line["messages"][index]["content"] for line in data[split]} for split in ("train", "held_out")]
        for index in (1, 0)
    )
    shared: dict[str, float] = {
        "templates": len(train.templates & held_out.templates),
        "products": len(set(train.products) & set(held_out.products)),
        "amounts": len(set(train.amounts) & set(held_out.amounts)),
        "messages": len(asked[0] & asked[1]),
        "answers": len(said[0] & said[1]),
    }
    for n in (1, 2, 3, 4):
        held = ngrams(data["held_out"], n)
        shared[f"{n}-grams"] = round(len(held & ngrams(data["train"], n)) / len(held), 3)
    return shared


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes the rows of the example task.")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--to", type=Path, default=HERE)
    options = parser.parse_args()
    data = generate(options.seed)
    write(data, options.to)
    phrases = load()
    for split, made in data.items():
        print(f"{split:9s} {len(made):4d} rows, {len(phrases[split].templates):3d} templates")
    print("held-out rows share with the training rows:")
    for what, share in overlap(data).items():
        print(f"  {what:10s} {share:g}" if isinstance(share, int) else f"  {what:10s} {share:.1%}")


if __name__ == "__main__":
    main()
