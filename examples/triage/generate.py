"""Writes the example task: a customer's message in, a strict JSON triage record out. Standard library only.

    python examples/triage/generate.py [--seed N] [--to DIR]

The same seed gives the same bytes on every Python version: only ``Random.random`` is used, which is guaranteed.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import TypeVar

from phrases import PRIORITIES, SPLITS, TEAMS, Phrases

HERE = Path(__file__).parent
SEED = 7
SIZES = {"train": 240, "valid": 40, "held_out": 60}
# In characters of the message. With Gemma's tokenizer a whole row is then 50 to 64 tokens.
SHORTEST, LONGEST = 70, 125

T = TypeVar("T")
Row = dict[str, list[dict[str, str]]]


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
        pressure = deck.deal(phrases.high if priority == "high" else phrases.low)
        # Before, between or after the other two.
        parts.insert(int(deck.rng.random() * 3), pressure)
    return " ".join(parts)


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
        if SHORTEST <= len(text) <= LONGEST and text not in made:
            made[text] = row(text, team, priority, refund, product)
    return shuffled(rng, made.values())


def generate(seed: int = SEED) -> dict[str, list[Row]]:
    return {split: rows(Random(f"{seed} {split}"), phrases, SIZES[split]) for split, phrases in SPLITS.items()}


def write(data: dict[str, list[Row]], to: Path) -> None:
    for split, made in data.items():
        lines = (json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in made)
        (to / f"{split}.jsonl").write_bytes("".join(lines).encode())


def templates(phrases: Phrases) -> set[str]:
    problems = {problem for team in TEAMS for problem in phrases.problems[team]}
    return problems | set(phrases.refund) | set(phrases.other) | set(phrases.high) | set(phrases.low)


def ngrams(made: list[Row], n: int) -> set[tuple[str, ...]]:
    texts = (line["messages"][0]["content"].lower().split() for line in made)
    return {tuple(words[at : at + n]) for words in texts for at in range(len(words) - n + 1)}


def overlap(data: dict[str, list[Row]]) -> dict[str, float]:
    """What the held-out rows have in common with the training rows: counts, and shares of distinct word n-grams."""
    train, held_out = SPLITS["train"], SPLITS["held_out"]
    answers = [{line["messages"][1]["content"] for line in data[split]} for split in ("train", "held_out")]
    texts = [{line["messages"][0]["content"] for line in data[split]} for split in ("train", "held_out")]
    shared: dict[str, float] = {
        "templates": len(templates(train) & templates(held_out)),
        "products": len(set(train.products) & set(held_out.products)),
        "amounts": len(set(train.amounts) & set(held_out.amounts)),
        "messages": len(texts[0] & texts[1]),
        "answers": len(answers[0] & answers[1]),
    }
    for n in (1, 2, 3, 4):
        held = ngrams(data["held_out"], n)
        shared[f"{n}-grams"] = round(len(held & ngrams(data["train"], n)) / len(held), 3)
    return shared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--to", type=Path, default=HERE)
    options = parser.parse_args()
    data = generate(options.seed)
    write(data, options.to)
    for split, made in data.items():
        print(f"{split:9s} {len(made):4d} rows, {len(templates(SPLITS[split])):3d} templates")
    print("held-out rows share with the training rows:")
    for what, share in overlap(data).items():
        print(f"  {what:10s} {share:g}" if isinstance(share, int) else f"  {what:10s} {share:.1%}")


if __name__ == "__main__":
    main()
