"""Who is held out, and how often each row of a mix comes."""

import numpy as np
import pytest

from worker.prepare import shares

RANDOM = np.random.default_rng(3)


def digests(count: int) -> "np.typing.NDArray[np.uint64]":
    return RANDOM.integers(0, 2**63, count, dtype=np.uint64) * np.uint64(2)


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.5])
def test_about_the_fraction_is_held_out_and_duplicates_stay_together(fraction: float) -> None:
    some = digests(20_000)
    twice = np.concatenate([some, some[::-1]])
    mask = shares.held_out(twice, fraction)
    assert abs(mask.mean() - fraction) < 0.01
    assert (mask[: len(some)] == mask[len(some) :][::-1]).all()


def test_rows_that_are_added_move_no_others() -> None:
    some = digests(500)
    assert (shares.held_out(some, 0.1)[:300] == shares.held_out(some[:300], 0.1)).all()


@pytest.mark.parametrize("fraction", [1e-9, 0.5])
def test_each_side_gets_a_row_however_few_there_are(fraction: float) -> None:
    for _ in range(50):
        mask = shares.held_out(np.repeat(digests(2), 3), fraction)
        assert sorted(np.unique(mask)) == [False, True]


@pytest.mark.parametrize("count", [0, 1])
def test_less_than_two_different_rows_can_not_be_divided(count: int) -> None:
    with pytest.raises(shares.TooFew):
        shares.held_out(np.repeat(digests(count), 5), 0.5)


def sources(*counts: int) -> "np.typing.NDArray[np.uint8]":
    return np.repeat(np.arange(len(counts), dtype=np.uint8), counts)


@pytest.mark.parametrize(
    ("counts", "weights", "given"),
    [
        ((100, 400), [0.5], [100, 50]),
        ((100, 30), [1.0], [100, 100]),
        ((100, 30, 7), [0.3, 2.0], [100, 30, 200]),
        ((10, 30), [0.01], [10, 1]),
        ((10, 0), [1.0], [10, 0]),
    ],
)
def test_weights_are_shares_of_an_epoch(counts: tuple[int, ...], weights: list[float], given: list[int]) -> None:
    who = sources(*counts)
    chosen = shares.mixed(who, weights, 7, repeat=True)
    assert np.bincount(who[chosen], minlength=len(counts)).tolist() == given
    # No row of a source comes more than once oftener than another.
    for source in range(len(counts)):
        often = np.bincount(chosen, minlength=len(who))[who == source]
        assert len(often) == 0 or often.max() - often.min() <= 1
    assert (chosen == shares.mixed(who, weights, 7, repeat=True)).all()


def test_another_seed_draws_other_rows() -> None:
    who = sources(100, 400)
    first, second = (shares.mixed(who, [0.5], seed, repeat=True) for seed in (1, 2))
    assert (first != second).any()


def test_what_is_held_out_is_never_repeated() -> None:
    who = sources(10, 3)
    assert shares.mixed(who, [2.0], 7, repeat=False).tolist() == list(range(13))
