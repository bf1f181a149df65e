"""With the same rows in the same order, each step's loss is Hugging Face Trainer's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Sampler, SequentialSampler
from transformers import Trainer, TrainingArguments

from tests import tiny
from tests.worker.train.conftest import Ran, open_job
from worker.train.batches import Order, Rows


class Watched(Trainer):
    """Trainer with its shuffling off and each step's loss kept unrounded."""

    losses: list[float]

    def _get_train_sampler(self, *_: Any) -> "Sampler[int]":
        return SequentialSampler(self.train_dataset)

    def training_step(self, *arguments: Any, **named: Any) -> torch.Tensor:
        loss = super().training_step(*arguments, **named)
        self.losses.append(float(loss))
        return loss


@pytest.mark.parametrize("prompt_loss_weight", [0.0, 1.0])
@pytest.mark.parametrize("micro", [1, 2])
def test_losses_equal_hugging_face_trainers(
    base: Path, train: Callable[[Path], Ran], tmp_path: Path, prompt_loss_weight: float, micro: int
) -> None:
    folder = tiny.build_job(
        tmp_path / "job", base, tiny.random_rows(16), prompt_loss_weight=prompt_loss_weight, epochs=2,
        # Trainer's own warm-up starts at a rate of 0, ours at the first share of the peak: compare without one.
        optim={"schedule": "constant", "warmup_steps": 0, "learning_rate": 5e-3},
    )  # fmt: skip
    _, model, _ = open_job(folder)
    rows, examples = Rows.read(folder / "train.safetensors"), []
    for _, chosen in Order(16, 4, seed=7).steps(0, 8):
        for i in chosen:
            part = slice(rows.offsets[i], rows.offsets[i + 1])
            ids = rows.input_ids[part].tolist()
            learned = [
                t > 0 and (spoken == 1 or prompt_loss_weight == 1) for t, spoken in enumerate(rows.completion[part])
            ]
            examples.append((ids, [token if yes else -100 for token, yes in zip(ids, learned, strict=True)]))

    def pad(batch: list[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
        longest = max(len(ids) for ids, _ in batch)
        fill = [longest - len(ids) for ids, _ in batch]
        return {
            "input_ids": torch.tensor([ids + [0] * n for (ids, _), n in zip(batch, fill, strict=True)]),
            "attention_mask": torch.tensor([[1] * len(ids) + [0] * n for (ids, _), n in zip(batch, fill, strict=True)]),
            "labels": torch.tensor([labels + [-100] * n for (_, labels), n in zip(batch, fill, strict=True)]),
        }

    trainer = Watched(
        model.peft,
        TrainingArguments(
            output_dir=str(tmp_path / "peer"),
            per_device_train_batch_size=micro, gradient_accumulation_steps=4 // micro,
            num_train_epochs=1, learning_rate=5e-3, lr_scheduler_type="constant", optim="adamw_torch_fused",
            max_grad_norm=1.0, report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True, seed=7,
            remove_unused_columns=False,
        ),
        train_dataset=examples,  # type: ignore[arg-type]
        data_collator=pad,
    )  # fmt: skip
    trainer.losses = []
    trainer.train()
    peers = [sum(trainer.losses[i : i + 4 // micro]) for i in range(0, len(trainer.losses), 4 // micro)]
    found = [event["train_loss"] for event in train(folder).events("step")]
    assert len(found) == 8
    assert found == pytest.approx(peers, rel=1e-5)
    assert found[-1] != pytest.approx(found[0], rel=1e-2)
