"""``python -m bench.peer NAME SPEC``: the reference job by somebody else's trainer, in that one's own environment.

SPEC is JSON: ``base``, ``rows`` of [tokens, 1 where the assistant speaks], ``talks`` of [question, answer], ``batch``,
``accumulation``, ``steps``, ``checkpointing``, ``out``, and ``products``, torch's precision of float32 products, if
that is to be set. Prints JSON: seconds of all steps, their losses, the peak of memory in bytes.
"""

import importlib.util
import json
import os
import sys
import time
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from bench.running import memory

Json = dict[str, Any]
RATE, RANK, ALPHA = 2e-4, 16, 32


def clock() -> Any:
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc,unused-ignore]  # whichever transformers it is
        began = ended = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = self.began or time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ended = time.perf_counter()

    return Clock()


def common(spec: Json) -> Json:
    return {
        "output_dir": spec["out"], "per_device_train_batch_size": spec["batch"],
        "gradient_accumulation_steps": spec["accumulation"], "max_steps": spec["steps"], "learning_rate": RATE,
        "lr_scheduler_type": "constant", "optim": "adamw_torch_fused", "report_to": [], "save_strategy": "no",
        "use_cpu": True, "bf16": False, "disable_tqdm": True, "seed": 7, "logging_steps": 1,
        "gradient_checkpointing": spec["checkpointing"], "train_sampling_strategy": "sequential",
    }  # fmt: skip


def lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, target_modules="all-linear")


def model(spec: Json) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(spec["base"], dtype=torch.float32, attn_implementation="sdpa")


def trainer(spec: Json, watch: Any) -> list[Json]:
    import torch
    from peft import get_peft_model
    from transformers import Trainer, TrainingArguments

    examples = [
        {"ids": tokens, "labels": [t if yes else -100 for t, yes in zip(tokens, said, strict=True)]}
        for tokens, said in spec["rows"]
    ]

    def padded(batch: list[Json]) -> Json:
        longest = max(len(one["ids"]) for one in batch)
        rest = [longest - len(one["ids"]) for one in batch]
        pairs = list(zip(batch, rest, strict=True))
        return {
            "input_ids": torch.tensor([one["ids"] + [0] * n for one, n in pairs]),
            "attention_mask": torch.tensor([[1] * len(one["ids"]) + [0] * n for one, n in pairs]),
            "labels": torch.tensor([one["labels"] + [-100] * n for one, n in pairs]),
        }

    arguments = TrainingArguments(**common(spec), remove_unused_columns=False)
    run = Trainer(
        get_peft_model(model(spec), lora()), arguments, train_dataset=examples, data_collator=padded, callbacks=[watch]
    )
    run.train()
    return list(run.state.log_history)


def trl(spec: Json, watch: Any) -> list[Json]:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    rows = Dataset.from_list([{"input_ids": tokens, "completion_mask": said} for tokens, said in spec["rows"]])
    run = SFTTrainer(
        model=model(spec),
        args=SFTConfig(**common(spec), completion_only_loss=True, max_length=None),
        train_dataset=rows,
        processing_class=PreTrainedTokenizerFast.from_pretrained(spec["base"]),
        peft_config=lora(),
        callbacks=[watch],
    )
    run.train()
    return list(run.state.log_history)


def llamafactory(spec: Json, watch: Any) -> list[Json]:
    # It loads torchaudio at once, which has no wheel for every build of torch; rows of text never come near it.
    if importlib.util.find_spec("torchaudio") is None:
        silent = ModuleType("torchaudio")
        silent.__spec__ = ModuleSpec("torchaudio", None)
        sys.modules["torchaudio"] = silent
    from llamafactory.train.tuner import run_exp

    data = Path(spec["out"]) / "data"
    data.mkdir(parents=True)
    told = [{"instruction": question, "input": "", "output": answer} for question, answer in spec["talks"]]
    (data / "rows.json").write_text(json.dumps(told))
    (data / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.json"}}))
    arguments = common(spec)
    arguments["disable_gradient_checkpointing"] = not arguments.pop("gradient_checkpointing")
    run_exp(
        arguments
        | {
            "model_name_or_path": spec["base"], "stage": "sft", "do_train": True, "finetuning_type": "lora",
            "lora_rank": RANK, "lora_alpha": ALPHA, "lora_target": "all", "dataset": "rows", "dataset_dir": str(data),
            "template": "gemma", "cutoff_len": 512, "overwrite_cache": True, "report_to": "none", "fp16": False,
            "preprocessing_num_workers": 1, "disable_shuffling": True,
        },
        callbacks=[watch],
    )  # fmt: skip
    state = json.loads((Path(spec["out"]) / "trainer_state.json").read_text())
    return list(state["log_history"])


def main() -> None:
    name, spec = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    if spec.get("products"):
        import torch

        torch.set_float32_matmul_precision(spec["products"])
    watch = clock()
    log = {"trainer": trainer, "trl": trl, "llamafactory": llamafactory}[name](spec, watch)
    losses = [entry["loss"] for entry in log if "loss" in entry]
    print(json.dumps({"seconds": watch.ended - watch.began, "losses": losses, "peak": memory("VmHWM")}), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
