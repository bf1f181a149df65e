"""``learning_rate: "find"``: the same rate each time, and a run at it that does not know that it was looked for."""

import hashlib
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from core import cost
from tests import tiny
from tests.worker.train.conftest import Ran, again, open_job
from worker.folder import EXIT_DRAINED
from worker.train import find, run
from worker.train.batches import Rows
from worker.train.find import Point, choose
from worker.train.loop import objective
from worker.train.ranks import Ranks

Train = Callable[[Path], Ran]


def job(folder: Path, base: Path, *, looks: bool = True, rate: float = 1e-3, **values: Any) -> Path:
    rows = tiny.random_pairs(8) if values.get("method") == "dpo" else tiny.random_rows(16)
    label = [1, 0] * 8 if values.get("method") == "dpo" else None
    return tiny.build_job(
        folder, base, rows, label=label, optim={"learning_rate": rate, "find": looks}, **({"epochs": 2} | values)
    )


KINDS: list[dict[str, Any]] = [
    {"adapter": "lora", "lora": {"dropout": 0.2}},
    {"adapter": "full"},
    {"adapter": "layers", "layers": [-1]},
    {"adapter": "ia3"},
    {"adapter": "prompt"},
    {"adapter": "prefix"},
    {"method": "dpo", "preference": {"loss": "sigmoid"}, "lora": {"dropout": 0.2}},
    {"method": "dpo", "preference": {"loss": "kto"}},
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(str(v) for v in kind.values() if isinstance(v, str)))
def test_the_run_is_the_one_at_the_found_rate_to_the_byte(
    base: Path, tmp_path: Path, train: Train, kind: dict[str, Any]
) -> None:
    """Whatever is trained was put back to the bit, and so were the random numbers."""
    looked = train(job(tmp_path / "looked", base, **kind))
    assert looked.status == 0, looked.events("error")
    (found,) = looked.events("found")
    plain = train(job(tmp_path / "plain", base, looks=False, rate=found["used"], **kind))
    assert looked.numbers == plain.numbers
    assert _weights(looked.folder) == _weights(plain.folder)
    assert len(found["points"]) > 3


def test_the_found_rate_is_a_share_of_the_one_where_a_quarter_of_what_was_learned_is_lost(
    base: Path, tmp_path: Path, train: Train
) -> None:
    (found,) = train(job(tmp_path / "job", base)).events("found")
    rates = [rate for rate, _ in found["points"]]
    assert rates == sorted(rates)
    assert min(loss for _, loss in found["points"]) < found["before"]
    assert choose(found["before"], [Point(*point) for point in found["points"]]) == found["used"]
    falls = [(1e-4, 3.0), (2e-4, 1.0), (4e-4, 1.2)]
    for more, too_high in (
        ([], 4e-4),
        ([(8e-4, 1.4), (1.6e-3, 1.6)], 1.6e-3),
        ([(8e-4, 1.6), (1.6e-3, 9.0)], 8e-4),
        ([(8e-4, 1.6), (1.6e-3, 1.4), (3.2e-3, 9.0)], 1.6e-3),
        ([(8e-4, 1.6), (1.6e-3, 1.4)], 8e-4 * 2**0.5),
    ):
        points = [Point(*point) for point in falls + more]
        assert choose(3.0, points) == pytest.approx(find.SHARE * too_high, rel=0.05)


def test_the_same_seed_finds_the_same_curve_and_another_seed_another(base: Path, tmp_path: Path, train: Train) -> None:
    """So a job that is killed before its first checkpoint does not find another rate."""
    curves = [
        train(job(tmp_path / str(n), base, seed=seed)).events("found")[0]["points"] for n, seed in enumerate((3, 3, 4))
    ]
    assert curves[0] == curves[1] != curves[2]


def test_a_resumed_run_remembers_the_rate_and_does_not_look_again(base: Path, tmp_path: Path, train: Train) -> None:
    whole = train(job(tmp_path / "whole", base))
    shutil.copytree(whole.folder / "checkpoints" / "step-4", tmp_path / "resumed.checkpoint")
    resumed = again(whole.folder, tmp_path / "resumed", Path("../resumed.checkpoint"))
    # The rate that the service has written down by now takes the automatic one's place.
    spec = json.loads((resumed / "spec.json").read_text())
    spec["optim"]["learning_rate"] = whole.events("found")[0]["used"]
    (resumed / "spec.json").write_text(json.dumps(spec))
    ran = train(resumed)
    assert ran.status == 0, ran.events("error") + ran.events("message")
    assert ran.events("found") == []
    assert ran.numbers == {step: numbers for step, numbers in whole.numbers.items() if step > 4}
    assert ran.adapter_sha256 == whole.adapter_sha256


def test_a_search_that_is_asked_to_stop_hands_the_job_back(
    base: Path, tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([False] * 30)
    monkeypatch.setattr(run, "_listen", lambda: lambda: next(looks, True))
    ran = train(job(tmp_path / "job", base))
    assert ran.status == EXIT_DRAINED
    assert ran.events("found") == ran.events("checkpoint") == []


def test_the_rows_apart_are_never_learned_from_and_follow_from_the_seed(base: Path, tmp_path: Path) -> None:
    spec, model, _ = open_job(job(tmp_path / "job", base, seed=3))
    method = objective(spec, Rows.read(tmp_path / "job" / "train.safetensors"), model)
    apart, steps = find._rows(spec, method)
    learned = {row for _ in range(find.STEPS) for row in next(steps)}
    assert len(apart) == len(method) // 3
    assert learned == set(range(len(method))) - set(apart)
    assert find._rows(spec, method)[0] == apart
    assert find._rows(spec.model_copy(update={"seed": 4}), method)[0] != apart


def test_whoever_ends_the_search_is_asked_before_each_micro_batch_and_finds_all_as_it_was(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, model, _ = open_job(job(tmp_path / "job", base, lora={"dropout": 0.2}))
    method = objective(spec, Rows.read(tmp_path / "job" / "train.safetensors"), model)
    before, rng = {name: p.detach().clone() for name, p in model.trainable.items()}, torch.get_rng_state()
    done: list[str] = []
    for name in ("backward", "measure"):
        real = getattr(method, name)
        monkeypatch.setattr(method, name, lambda *args, real=real, name=name: (done.append(name), real(*args))[1])

    def look() -> None:
        # In the middle of a step whose gradients are half there.
        if done.count("backward") == 6:
            raise InterruptedError
        done.append("look")

    with pytest.raises(InterruptedError):
        find.find(spec, model, method, Ranks(), look)
    assert done.count("backward") == 6
    assert done == [each for pair in done[1::2] for each in ("look", pair)]
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.trainable.items())
    assert torch.equal(torch.get_rng_state(), rng)


def test_the_search_ends_where_the_loss_has_risen_by_half(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(find._RANGES, "full", (1e-4, 1e2))
    spec, model, _ = open_job(job(tmp_path / "job", base, adapter="full"))
    method = objective(spec, Rows.read(tmp_path / "job" / "train.safetensors"), model)
    found = find.find(spec, model, method, Ranks())
    *lower, last = found.points
    assert len(found.points) < find.STEPS
    assert last.loss > 1.5 * found.before >= max(point.loss for point in lower)


@pytest.mark.parametrize(
    ("adapter", "optimizer", "low", "high"),
    [
        ("lora", "adamw", 3e-5, 3e-2),
        ("full", "adamw", 1e-6, 1e-3),
        ("prompt", "adamw", 1e-3, 1),
        ("lora", "sgd", 1e-3, 1),
    ],
)
def test_rates_climb_by_equal_factors_through_the_range_of_what_is_trained(
    base: Path, tmp_path: Path, adapter: str, optimizer: str, low: float, high: float
) -> None:
    spec, _, _ = open_job(job(tmp_path / "job", base, adapter=adapter))
    rates = find.rates(spec.model_copy(update={"optim": spec.optim.model_copy(update={"optimizer": optimizer})}))
    assert (rates[0], rates[-1]) == (pytest.approx(low), pytest.approx(high))
    factors = [after / before for before, after in itertools.pairwise(rates)]
    assert factors == pytest.approx([(high / low) ** (1 / (find.STEPS - 1))] * (find.STEPS - 1))


def test_steps_of_the_search_are_clipped_like_the_runs(base: Path, tmp_path: Path) -> None:
    """Gradients of next to no length move nothing, at any rate of plain descent."""
    spec, model, _ = open_job(job(tmp_path / "job", base))
    method = objective(spec, Rows.read(tmp_path / "job" / "train.safetensors"), model)
    optim = spec.optim.model_copy(update={"optimizer": "sgd", "max_grad_norm": 1e-12})
    found = find.find(spec.model_copy(update={"optim": optim}), model, method, Ranks())
    assert [point.loss for point in found.points] == pytest.approx([found.before] * find.STEPS, rel=1e-5)


def test_the_search_learns_with_dropout_and_judges_without(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, model, _ = open_job(job(tmp_path / "job", base, lora={"dropout": 0.2}))
    method = objective(spec, Rows.read(tmp_path / "job" / "train.safetensors"), model)
    modes: dict[str, set[bool]] = {"backward": set(), "measure": set()}
    for name in modes:
        real = getattr(method, name)

        def noted(*args: Any, real: Any = real, name: str = name) -> Any:
            modes[name].add(model.module.training)
            return real(*args)

        monkeypatch.setattr(method, name, noted)
    find.find(spec, model, method, Ranks())
    assert modes == {"backward": {True}, "measure": {False}}


@pytest.mark.parametrize("points", [[], [(1e-4, 2.0), (1e-3, 1.999), (1e-2, 4.0)]])
def test_where_the_loss_never_falls_nothing_is_found(points: list[tuple[float, float]]) -> None:
    assert choose(2.0, [Point(*point) for point in points]) is None


def test_where_nothing_is_found_the_automatic_rate_is_used(
    base: Path, tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(find, "_LEAST_FALL", 0.999)
    ran = train(job(tmp_path / "job", base, rate=2e-3))
    (found,) = ran.events("found")
    assert (found["learning_rate"], found["used"]) == (None, 2e-3)
    assert max(event["learning_rate"] for event in ran.events("step")) == 2e-3


def test_an_estimate_counts_the_steps_that_the_search_takes() -> None:
    assert (cost.FIND_STEPS, cost.FIND_ROWS, cost.FIND_APART) == (find.STEPS, find.ROWS, find.APART)


def _weights(folder: Path) -> dict[str, str]:
    paths = sorted((folder / "artifact").glob("*model*.safetensors"))
    assert paths
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
