"""Rows that share a sequence are the rows they would be alone."""

from pathlib import Path

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

from core.cost import TOGETHER
from tests import tiny
from tests.worker.train.conftest import open_job
from worker.train import load
from worker.train.batches import Batches, Rows
from worker.train.faults import Refused

ROWS = tiny.random_rows(4, seed=1)


def test_a_packed_rows_outputs_are_its_own(base: Path, tmp_path: Path) -> None:
    _, model, batches = open_job(tiny.build_job(tmp_path / "job", base, ROWS, packing=True), 4)
    (packed,) = batches.cut(range(4))
    with torch.no_grad():
        together = model.hidden(packed.input_ids, packed.position_ids)[0]
        alone = [model.hidden(torch.tensor([ROWS[row][0]]))[0] for row in packed.rows]
    assert float((together - torch.cat(alone)).abs().max()) < 1e-5


def test_another_row_in_the_pack_changes_no_bit(base: Path, tmp_path: Path) -> None:
    _, model, batches = open_job(tiny.build_job(tmp_path / "job", base, ROWS, packing=True), 4)
    (packed,) = batches.cut(range(4))
    lengths = [len(ROWS[row][0]) for row in packed.rows]
    second = slice(lengths[0], lengths[0] + lengths[1])
    changed = packed.input_ids.clone()
    changed[:, second] = (changed[:, second] + 7) % 500 + 4
    with torch.no_grad():
        before = model.hidden(packed.input_ids, packed.position_ids)[0]
        after = model.hidden(changed, packed.position_ids)[0]
    assert not torch.equal(before[second], after[second])
    assert torch.equal(before[: second.start], after[: second.start])
    assert torch.equal(before[second.stop :], after[second.stop :])


def test_no_row_predicts_the_next_ones_first_token(tmp_path: Path) -> None:
    tiny.write_rows(tmp_path / "f", ROWS)
    rows = Rows.read(tmp_path / "f")
    (packed,) = Batches(rows, 0.1, 4, torch.device("cpu"), packed=True).cut(range(4))
    (padded,) = Batches(rows, 0.1, 4, torch.device("cpu")).cut(range(4))
    assert packed.targets.tolist() == padded.targets.tolist()
    assert packed.weights.tolist() == padded.weights.tolist()
    assert packed.input_ids[0, packed.positions + 1].tolist() == packed.targets.tolist()
    lengths = [len(ROWS[row][0]) for row in packed.rows]
    ends = torch.tensor(lengths).cumsum(0) - 1
    assert not set(ends.tolist()) & set(packed.positions.tolist())


def test_packed_rows_are_together_up_to_what_a_processor_wants(tmp_path: Path) -> None:
    """And no more than the micro-batch says; a row that is longer by itself goes alone."""
    lengths = [200, 10, 700, 300, 40, 250, 20]
    tiny.write_rows(tmp_path / "f", [([5] * n, [0] + [1] * (n - 1)) for n in lengths])
    rows = Rows.read(tmp_path / "f")

    def cut(size: int, *, packed: bool) -> list[list[int]]:
        batches = Batches(rows, 0.1, size, torch.device("cpu"), packed)
        return [[lengths[row] for row in batch.rows] for batch in batches.cut(range(len(lengths)))]

    assert TOGETHER == 512
    assert cut(8, packed=True) == [[10, 20, 40, 200], [250], [300], [700]]
    assert cut(2, packed=True) == [[10, 20], [40, 200], [250], [300], [700]]
    assert cut(4, packed=False) == [[10, 20, 40, 200], [250, 300, 700]]


def test_a_model_whose_rows_would_mix_is_refused() -> None:
    config = MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, state_size=4)
    with pytest.raises(Refused) as refused:
        load.check_packing(MambaForCausalLM(config))
    assert refused.value.code == "unpackable_base_model"
