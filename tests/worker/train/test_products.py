"""The quicker library multiplies in float32, only where it is asked to, and rows come in few sizes."""

from pathlib import Path

import pytest
import torch

from tests import tiny
from tests.worker.train.conftest import open_job
from worker.train import products


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor where oneDNN is the quicker one."""
    monkeypatch.setattr(products, "onednn", lambda: True)


@pytest.mark.parametrize("sizes", [(1, 64, 300), (7, 640, 2048), (129, 1024, 16), (500, 16, 333)])
def test_products_are_float32s(sizes: tuple[int, int, int]) -> None:
    """On this machine, whichever library it is. In bfloat16 they would be off by a thousandth."""
    rows, depth, columns = sizes
    torch.manual_seed(0)
    a, b = torch.randn(rows, depth), torch.randn(columns, depth)
    with products.quick():
        found = a @ b.t()
    right = a.double() @ b.double().t()
    assert float((found.double() - right).norm() / right.norm()) < 1e-6


@pytest.mark.usefixtures("asked")
def test_the_setting_ends_with_the_block_also_when_it_fails() -> None:
    def fails() -> None:
        with products.quick():
            assert torch.get_float32_matmul_precision() == "medium"
            raise ZeroDivisionError

    before = torch.get_float32_matmul_precision()
    with pytest.raises(ZeroDivisionError):
        fails()
    assert torch.get_float32_matmul_precision() == before


def test_a_processor_whose_products_lose_digits_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As AMX tiles would: half of the digits are gone."""

    def coarse(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.einsum("ij,jk->ik", a.bfloat16(), b.bfloat16()).float()

    assert products._exact()
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: coarse(a, b) if a.dtype == torch.float32 else a.mm(b))
    assert not products._exact()


@pytest.mark.usefixtures("asked")
def test_rows_come_in_eight_sizes_between_powers_of_two() -> None:
    assert [products.padded(n) for n in (5, 250)] == [5, 250]
    with products.quick():
        found = [products.padded(n) for n in range(1, 4097)]
    assert all(n <= size < 1.13 * n + 16 for n, size in enumerate(found, 1))
    assert all(len({size for size in found if low < size <= 2 * low}) == 8 for low in (128, 256, 512, 1024, 2048))
    assert products.padded(0) == 0


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("packing", [False, True])
def test_tokens_that_fill_a_row_up_change_no_output(base: Path, tmp_path: Path, packing: bool) -> None:
    rows = tiny.random_rows(3, seed=4)
    _, model, batches = open_job(tiny.build_job(tmp_path / "job", base, rows, packing=packing), 3)
    (batch,) = batches.cut(range(3))
    seen: list[int] = []
    model.network.base_model.register_forward_pre_hook(
        lambda _, __, given: seen.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    with torch.no_grad():
        plain = model.hidden(batch.input_ids, batch.position_ids)
        with products.quick():
            filled = model.hidden(batch.input_ids, batch.position_ids)
    assert seen[1] > seen[0] == batch.input_ids.shape[1]
    assert plain.shape == filled.shape
    assert float((plain - filled).abs().max()) < 1e-5


@pytest.mark.usefixtures("asked")
def test_no_row_is_filled_up_beyond_the_models_positions(base: Path, tmp_path: Path) -> None:
    _, model, _ = open_job(tiny.build_job(tmp_path / "job", base, tiny.random_rows(2)))
    model.network.config.max_position_embeddings = 100
    seen: list[int] = []
    model.network.base_model.register_forward_pre_hook(
        lambda _, __, given: seen.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    with torch.no_grad(), products.quick():
        model.hidden(torch.ones(1, 100, dtype=torch.long))
        model.hidden(torch.ones(1, 90, dtype=torch.long))
    assert seen == [100, 96]
