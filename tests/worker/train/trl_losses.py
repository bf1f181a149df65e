"""``python -m tests.worker.train.trl_losses FOLDER``: what TRL makes of a job folder, each step's loss as JSON.

Runs in an environment of its own, which has trl and datasets in its path (``test_trl.py``).
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import SequentialSampler
from transformers import PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from tests.worker.train.conftest import open_job
from worker.folder import PreferenceSpec, TrainSpec
from worker.train.batches import Order, Rows

Json = dict[str, Any]


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    spec, model, _ = open_job(folder)
    assert spec.preference is not None
    rows = Rows.read(folder / "train.safetensors")
    trainer_class, config = _kind(spec, spec.preference)
    kto = spec.preference.loss == "kto"
    examples = [
        _judged(rows, i) if kto else _pair(rows, i)
        for _, chosen in Order(len(rows) // (1 if kto else 2), spec.batch_size, spec.seed).steps(0, spec.total_steps)
        for i in chosen
    ]

    class Watched(trainer_class):  # type: ignore[misc,valid-type]
        losses: list[float] = []

        def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
            return dataset

        def tokenize_row(self, feature: Json, *_: Any, **__: Any) -> Json:
            return feature

        def _get_train_sampler(self, *_: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

        def training_step(self, *arguments: Any, **named: Any) -> torch.Tensor:
            loss: torch.Tensor = super().training_step(*arguments, **named)
            self.losses.append(float(loss))
            return loss

    tokenizer = PreTrainedTokenizerFast.from_pretrained(spec.base.path)
    trainer = Watched(
        model=model.peft,
        args=config(
            output_dir=str(folder / "trl"),
            per_device_train_batch_size=spec.batch_size,
            num_train_epochs=1,
            learning_rate=spec.optim.learning_rate,
            lr_scheduler_type="constant",
            optim="adamw_torch_fused",
            max_grad_norm=spec.optim.max_grad_norm,
            beta=spec.preference.beta,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            disable_tqdm=True,
            remove_unused_columns=False,
            seed=spec.seed,
        ),
        train_dataset=Dataset.from_list(examples),
        processing_class=tokenizer,
    )
    trainer.train()
    print(json.dumps(trainer.losses))


def _kind(spec: TrainSpec, preference: PreferenceSpec) -> tuple[type, Any]:
    match preference.loss:
        case "simpo":
            return CPOTrainer, lambda **given: CPOConfig(
                loss_type="simpo", cpo_alpha=0.0, simpo_gamma=preference.gamma, max_length=spec.max_length, **given
            )
        case "orpo":
            return ORPOTrainer, lambda **given: ORPOConfig(max_length=spec.max_length, **given)
        case "kto":
            return KTOTrainer, lambda **given: KTOConfig(max_length=None, **given)
        case loss:
            return DPOTrainer, lambda **given: DPOConfig(loss_type=[loss], max_length=None, **given)


def _parts(rows: Rows, i: int) -> tuple[list[int], list[int]]:
    part = slice(int(rows.offsets[i]), int(rows.offsets[i + 1]))
    ids, start = rows.input_ids[part].tolist(), int(rows.completion[part].argmax())
    return ids[:start], ids[start:]


def _pair(rows: Rows, i: int) -> Json:
    """In the names of DPOTrainer, and in those that CPOTrainer and ORPOTrainer keep from an earlier time."""
    (prompt, chosen), (_, rejected) = _parts(rows, 2 * i), _parts(rows, 2 * i + 1)
    example: Json = {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
    example |= {"prompt": "", "chosen": "", "rejected": "", "prompt_input_ids": prompt}
    example["prompt_attention_mask"] = [1] * len(prompt)
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        example[f"{name}_input_ids"] = [*prompt, *answer]
        example[f"{name}_attention_mask"] = [1] * len([*prompt, *answer])
        example[f"{name}_labels"] = [*([-100] * len(prompt)), *answer]
    return example


def _judged(rows: Rows, i: int) -> Json:
    prompt, completion = _parts(rows, i)
    _, other = _parts(rows, (i - 1) % len(rows))
    assert rows.label is not None
    return {
        "prompt_ids": prompt,
        "completion_ids": completion,
        "KL_completion_ids": other,
        "label": bool(rows.label[i]),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
