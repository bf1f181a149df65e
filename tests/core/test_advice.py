"""Advice follows the data: each sentence has its condition, and nothing is said without one."""

import pytest

from core.advice import advise
from core.resolved import Resolved
from tests.worker.test_runner import RESOLVED


def codes(examples: int, prompt: int = 100, completion: int = 100, **changes: object) -> set[str]:
    resolved = Resolved.model_validate(RESOLVED | {"seed": 1, "epochs": 3.0, "batch_size": 8} | changes)
    return {one.code for one in advise(resolved, examples=examples, prompt_tokens=prompt, completion_tokens=completion)}


def test_a_tiny_set_is_told_to_try_prompting_first() -> None:
    assert "try_prompting_first" in codes(12)
    assert "try_prompting_first" not in codes(500)


def test_a_few_hundred_rows_are_told_that_lora_suits_them_and_thousands_that_all_weights_could_be_trained() -> None:
    resolved = Resolved.model_validate(RESOLVED | {"seed": 1})
    few, many = (
        next(one for one in advise(resolved, examples=n, prompt_tokens=1, completion_tokens=1) if one.code == "method")
        for n in (300, 8000)
    )
    assert "LoRA suits 300 examples" in few.message
    assert "enough to train every weight" in many.message


@pytest.mark.parametrize(
    ("examples", "epochs", "code"),
    [(300, 1.0, "more_epochs"), (2_000_000, 3.0, "fewer_epochs"), (300, 20.0, "overfitting"), (300, 3.0, None)],
)
def test_epochs_go_by_the_size_of_the_data(examples: int, epochs: float, code: str | None) -> None:
    about_epochs = codes(examples, epochs=epochs) & {"more_epochs", "fewer_epochs", "overfitting"}
    assert about_epochs == ({code} if code else set())


@pytest.mark.parametrize(
    ("weight", "prompt", "completion", "said"),
    [(0.0, 100, 20, True), (0.1, 100, 20, False), (0.1, 20, 100, True), (0.0, 20, 100, False), (1.0, 100, 20, True)],
)
def test_the_weight_of_prompts_goes_by_their_length(weight: float, prompt: int, completion: int, said: bool) -> None:
    assert ("prompt_loss_weight" in codes(500, prompt, completion, prompt_loss_weight=weight)) is said


def test_small_steps_are_called_uneasy() -> None:
    assert "batch_size" in codes(500, batch_size=2)
    assert "batch_size" not in codes(500, batch_size=8)
