"""What a run tells of its rows, of its adapter and of what was learned."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.worker.train.conftest import Ran, again
from worker.train import observe
from worker.train.batches import Rows

Train = Callable[[Path], Ran]


def test_rows_that_repeat_others_are_counted(base: Path, train: Train, tmp_path: Path) -> None:
    rows, held = tiny.random_rows(10), tiny.random_rows(4, seed=1)
    ran = train(tiny.build_job(tmp_path / "job", base, [*rows, *rows[:3], rows[0]], [*held, *rows[:2], held[0]]))
    started = ran.events("started")[0]
    assert {key: started[key] for key in ("rows", "duplicates", "valid_rows", "shared")} == {
        "rows": 14,
        "duplicates": 4,
        "valid_rows": 7,
        "shared": 2,
    }


def moved(ran: Ran) -> dict[int, float | None]:
    return {event["step"]: event["metrics"]["adapter_moved"] for event in ran.events("checkpoint")}


def test_an_adapter_that_does_not_move_is_told_from_one_that_does(base: Path, train: Train, tmp_path: Path) -> None:
    rows = tiny.random_rows(12)
    learns = train(tiny.build_job(tmp_path / "a", base, rows, epochs=3))
    still = train(tiny.build_job(tmp_path / "b", base, rows, epochs=3, optim={"learning_rate": 1e-10}))
    whole = train(tiny.build_job(tmp_path / "c", base, rows, adapter="full"))
    shares = list(moved(learns).values())
    assert shares == sorted(shares)  # type: ignore[type-var]  # numbers, all of them
    assert shares[0] is not None
    assert shares[0] > 1e-3
    assert all(share is not None and share < 1e-6 for share in moved(still).values())
    assert set(moved(whole).values()) == {None}


def test_a_resumed_run_measures_from_the_same_beginning(base: Path, train: Train, tmp_path: Path) -> None:
    whole = train(tiny.build_job(tmp_path / "a", base, tiny.random_rows(12), epochs=3))
    resumed = train(again(whole.folder, tmp_path / "b", whole.folder / "checkpoints" / "step-3"))
    assert moved(resumed) == {step: share for step, share in moved(whole).items() if step > 3}


def learned(ran: Ran) -> dict[str, Any]:
    told: dict[str, Any] = ran.events("done")[0]["learned"]
    return told


def test_whether_the_end_of_an_answer_was_learned(base: Path, train: Train, tmp_path: Path) -> None:
    rows = tiny.random_rows(12)
    optim = {"learning_rate": 1e-2, "schedule": "constant"}
    good = train(tiny.build_job(tmp_path / "a", base, rows, epochs=30, optim=optim))
    none = train(tiny.build_job(tmp_path / "b", base, rows, optim={"learning_rate": 1e-10}))
    cut = train(tiny.build_job(tmp_path / "c", base, [(row[0][:-1], row[1][:-1]) for row in rows]))
    assert learned(good)["end_common"] == 1.0
    assert learned(good)["end_first"] > 0.9
    assert learned(good)["end_probability"] > 0.5
    assert learned(none)["end_first"] < 0.5
    assert learned(none)["end_probability"] < 0.1
    assert learned(cut)["end_common"] < 0.5


def test_plain_text_has_no_end_of_turn(base: Path, train: Train, tmp_path: Path) -> None:
    rows = [(row[0], [1] * len(row[0])) for row in tiny.random_rows(8)]
    assert "end_common" not in learned(train(tiny.build_job(tmp_path / "job", base, rows)))


def test_memorised_rows_are_known_better_than_others(base: Path, train: Train, tmp_path: Path) -> None:
    rows = tiny.random_rows(16)
    optim = {"learning_rate": 1e-2, "schedule": "constant"}
    ran = train(tiny.build_job(tmp_path / "job", base, rows + rows[:2] * 15, epochs=2, optim=optim))
    told = learned(ran)
    assert (told["duplicate_rows"], told["duplicate_times"]) == (2, 16)
    assert told["duplicate_loss"] < 0.7 * told["single_loss"]
    assert "duplicate_loss" not in learned(train(tiny.build_job(tmp_path / "other", base, rows)))


def test_of_very_many_rows_the_first_stand_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tiny.random_rows(40)
    tiny.write_rows(tmp_path / "train.safetensors", [row for row in rows for _ in range(2)])
    monkeypatch.setattr(observe, "_MOST_ROWS", 20)
    assert observe.facts(Rows.read(tmp_path / "train.safetensors"), None) == {"rows": 80, "duplicates": 40}


def test_an_answer_that_is_in_several_pairs_is_no_duplicate(base: Path, train: Train, tmp_path: Path) -> None:
    pairs, held = tiny.random_pairs(4), tiny.random_pairs(3, seed=9)
    preference = {"loss": "sigmoid", "beta": 0.1}
    ran = train(
        tiny.build_job(
            tmp_path / "job",
            base,
            [*pairs, pairs[0], pairs[1]],
            held,
            label=[1, 0] * 5,
            method="dpo",
            preference=preference,
            prompt_loss_weight=0.0,
            total_steps=1,
        )
    )
    started = ran.events("started")[0]
    assert {key: started.get(key) for key in ("rows", "duplicates", "valid_rows")} == {
        "rows": 5,
        "duplicates": None,
        "valid_rows": 3,
    }
