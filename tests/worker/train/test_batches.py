from pathlib import Path

import numpy as np
import pytest
import torch

from tests import tiny
from worker.train import batches
from worker.train.batches import Batches, Order, Rows
from worker.train.faults import Refused


def seen(order: Order, after: int, until: int) -> list[int]:
    return [row for _, chosen in order.steps(after, until) for row in chosen]


def test_an_epoch_shows_every_row_once_and_the_next_in_another_order() -> None:
    order = Order(rows=10, batch_size=4, seed=1)
    assert [len(chosen) for _, chosen in order.steps(0, 6)] == [4, 4, 2, 4, 4, 2]
    first, second = seen(order, 0, 3), seen(order, 3, 6)
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert first != seen(Order(10, 4, seed=2), 0, 3)


def test_the_order_after_a_step_does_not_depend_on_how_it_was_reached() -> None:
    order = Order(rows=23, batch_size=5, seed=9)
    whole = list(order.steps(0, 14))
    assert [list(order.steps(after, 14)) for after in range(14)] == [whole[after:] for after in range(14)]


def test_the_order_of_a_seed_stays_what_it_was() -> None:
    """Another numpy, another machine: a job that resumes there must meet its rows in the order it began with."""
    assert Order(8, 8, seed=42).epoch(0).tolist() == [4, 1, 3, 6, 0, 7, 2, 5]


def test_weights_follow_the_rule(tmp_path: Path) -> None:
    tiny.write_rows(tmp_path / "f", [([1, 9, 8, 3], [0, 0, 1, 1], [1, 1, 0.5, 0.5]), ([7, 3], [1, 1])])
    rows = Rows.read(tmp_path / "f")
    # The first token of each row is predicted by nothing.
    assert rows.weights(0.1).tolist() == pytest.approx([0, 0.1, 0.5, 0.5, 0, 1])
    batches = Batches(rows, 0.1, 2, torch.device("cpu"))
    assert batches.weight([0, 1]) == pytest.approx(2.1)
    assert (batches.trained([0]), batches.trained([1]), batches.tokens([0, 1])) == (3, 1, 6)


def test_a_micro_batch_asks_each_output_for_the_token_after_it(tmp_path: Path) -> None:
    tiny.write_rows(tmp_path / "f", [([1, 9, 8, 3], [0, 0, 1, 1]), ([7, 3], [0, 1])])
    (batch,) = Batches(Rows.read(tmp_path / "f"), 0.0, 2, torch.device("cpu")).cut([0, 1])
    assert batch.input_ids.tolist() == [[7, 3, 0, 0], [1, 9, 8, 3]]
    assert batch.positions.tolist() == [0, 5, 6]
    assert batch.targets.tolist() == [3, 8, 3]
    assert batch.completion_weights.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("row", "code"),
    [
        (([1, 2, 512], [0, 1, 1]), "token_out_of_range"),
        (([1] * 20, [1] * 20), "row_too_long"),
        (([1], [1]), "row_too_short"),
        (([1, 2], [1, 1], [1.0, float("nan")]), "bad_weight"),
        (([1, 2], [1, 1], [1.0, -1.0]), "bad_weight"),
    ],
)
def test_rows_that_would_train_wrongly_are_refused(tmp_path: Path, row: tiny.Row, code: str) -> None:
    tiny.write_rows(tmp_path / "f", [([1, 2, 3], [0, 1, 1]), row])
    with pytest.raises(Refused) as refused:
        Rows.read(tmp_path / "f").check("training_file", 512, 16)
    assert refused.value.code == code
    if code != "token_out_of_range" and code != "bad_weight":
        assert "line 2 " in refused.value.message


def test_token_files_are_read_as_the_folder_says(tmp_path: Path) -> None:
    tiny.write_rows(tmp_path / "f", tiny.random_rows(3))
    rows = Rows.read(tmp_path / "f")
    assert (rows.input_ids.dtype, rows.offsets.dtype) == (np.int32, np.int64)
    assert len(rows) == 3


def test_rows_are_mapped_and_their_weights_the_same_in_any_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write_rows(tmp_path / "f", tiny.random_rows(50, seed=3))
    rows = Rows.read(tmp_path / "f")
    assert not rows.input_ids.flags.owndata
    assert not rows.input_ids.flags.writeable
    whole = Batches(rows, 0.1, 2, torch.device("cpu"))
    for at_once in (1, 7, 100):
        monkeypatch.setattr(batches, "_AT_ONCE", at_once)
        assert [last for _, last in rows.groups(at_once)][-1] == 50
        pieces = Batches(rows, 0.1, 2, torch.device("cpu"))
        assert pieces.row_weights.tolist() == whole.row_weights.tolist()
        assert pieces.row_trained.tolist() == whole.row_trained.tolist()
    for row in (0, 17, 49):
        part = slice(int(rows.offsets[row]), int(rows.offsets[row + 1]))
        assert rows.weights(0.1, row, row + 1).tolist() == rows.weights(0.1)[part].tolist()
