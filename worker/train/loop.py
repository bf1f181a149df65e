"""The training loop, read from top to bottom. Knows rows, a model and an event file; no database, queue or store."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from worker.folder import STOP, OptimSpec, TrainSpec
from worker.train import checkpoint, find, observe, optimizers, preference, scaling, schedule
from worker.train.answers import Answerer
from worker.train.batches import Order, Rows
from worker.train.best import Keeper
from worker.train.checkpoint import Kind, Progress, State
from worker.train.events import Events
from worker.train.faults import Diverged, Drained, Refused
from worker.train.model import Model
from worker.train.objective import Objective
from worker.train.preference import Preference
from worker.train.ranks import Ranks
from worker.train.supervised import Supervised

_UPLOADED = 4.5
"""What a recovery point costs, in seconds that it takes to save: it is hashed and sent while training goes on, by the
same processor (docs/benchmarks.md)."""
_SAVED = 0.5e9
"""Bytes a second that saving is thought to reach before there is a first point to go by"""


@dataclass
class Run:
    """One job on one model. ``draining`` tells whether somebody wants the job handed back."""

    spec: TrainSpec
    folder: Path
    model: Model
    rows: Rows
    valid: Rows | None
    events: Events
    ranks: Ranks = field(default_factory=Ranks)
    draining: Callable[[], bool] = lambda: False

    def __post_init__(self) -> None:
        spec = self.spec
        self.objective = objective(spec, self.rows, self.model)
        self.judge = None if self.valid is None else objective(spec, self.valid, self.model)
        self.answerer = Answerer(spec, self.rows, self.valid)
        self.order = Order(len(self.objective), spec.batch_size, spec.seed)
        self.optimizer = optimizers.build(spec.optim, self.model, spec.lora.plus_ratio)
        self.data = {"train": self.rows.sha256} | ({"valid": self.valid.sha256} if self.valid else {})
        self.config = checkpoint.config_sha256(spec, self.data)
        self.fingerprint = checkpoint.fingerprint(spec, self.model)
        self.progress = Progress()
        self.best = (
            None if spec.early_stopping is None or self.judge is None else Keeper(spec.early_stopping, self.model)
        )
        self.movement = observe.Movement(self.model)
        self.stop_reason: str | None = None
        self.resumed_from = 0
        self.saved_at = 0
        self.saved_time = self.listed_time = time.monotonic()
        # What is trained and the optimizer's two moments, in float32.
        self.saving_seconds = 3 * 4 * self.model.trainable_parameters / _SAVED

    def train(self) -> Progress:
        spec, model, events, progress = self.spec, self.model, self.events, self.progress
        self._refuse_steps_without_weight()
        if spec.init is not None and spec.init.optimizer:
            self._take_moments(self.folder / spec.init.path)
        if spec.resume is not None:
            progress = self.progress = self._resume(self.folder / spec.resume)
        events.emit(
            "started",
            total_steps=spec.total_steps,
            trainable_parameters=model.trainable_parameters,
            parameters=model.parameters,
            device=str(model.device),
            resumed_from_step=self.resumed_from,
            **self._facts,
        )
        if spec.preference is not None and spec.preference.loss in preference.WITH_REFERENCE:
            self._refer()
        optim = self._found()
        if self.answerer and progress.step == 0:
            self._answer("base")
        events.emit("phase", phase="training")
        model.module.train()
        if not progress.settled:
            self._settle()

        for step, chosen in self.order.steps(progress.step, spec.total_steps):
            if self._stop_due:
                self._stop()
                self.stop_reason = "limit_reached" if self._asked == "limit" else "stopped_by_user"
                break
            if self.best is not None and self.best.over(progress.best):
                self.stop_reason = "early_stopped"
                break
            began = time.perf_counter()
            measured, grad_norm = self._gradient(step, chosen)
            progress.course.look(
                step, measured["loss"], grad_norm, self.saved_at, spec.batch_size, blows_up=spec.preference is None
            )
            learning_rate = schedule.learning_rate(optim, step, spec.total_steps)
            optimizers.set_learning_rate(self.optimizer, learning_rate)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

            seconds = time.perf_counter() - began
            tokens, trained_tokens = self.objective.tokens(chosen), self.objective.trained(chosen)
            progress.step, progress.settled = step, False
            progress.tokens += tokens
            progress.trained_tokens += trained_tokens
            progress.seconds += seconds
            metrics = _named(measured, "train_") | {"learning_rate": learning_rate, "grad_norm": grad_norm}
            progress.metrics |= metrics
            events.emit(
                "step",
                step=step,
                epoch=self._epoch,
                **metrics,
                tokens=tokens,
                trained_tokens=trained_tokens,
                seconds=seconds,
                tokens_per_second=tokens / seconds,
            )
            self._settle()
        if self.best is not None and progress.best.step not in (None, progress.step):
            self.best.restore()
        if not observe.finite(self.model):
            raise self._lost("weights are")
        return progress

    def _gradient(self, step: int, chosen: list[int]) -> tuple[dict[str, float | None], float]:
        """The step's metrics, and the norm of its gradient before it was clipped."""
        model = self.model
        rng = checkpoint.random_state(model)
        while True:
            whole = self.objective.begin(model, chosen, self.ranks)
            told = torch.zeros(self.objective.told, dtype=torch.float64, device=model.device)
            for micro_batch in self.objective.cut(self.ranks.share(chosen)):
                if self.ranks.size == 1 and self.draining():
                    # The step is given up, so the job goes back as it was after the step before.
                    checkpoint.set_random_state(model, rng)
                    self._hand_back()
                told += self.objective.backward(model, micro_batch, whole)
            gradients = self.ranks.gradients(model.trainable.values())
            self.ranks.sum_([told, *gradients])
            measured = self.objective.metrics(told, whole)
            if scaling.fits(model, self.optimizer):
                return measured, optimizers.clip(gradients, self.spec.optim.max_grad_norm)
            self.progress.overflows += 1
            scaling.overflown(model, self.events, step, measured["loss"])
            checkpoint.set_random_state(model, rng)

    def _lost(self, what: str) -> Diverged:
        message = f"The {what} no longer finite after step {self.progress.step}: the run diverged."
        return Diverged(f"{message} Lower the learning rate.", self.progress.course.good_step)

    @property
    def _facts(self) -> dict[str, int]:
        if self.spec.preference is None:
            return observe.facts(self.rows, self.valid)
        # The same answer may be in several pairs: that is no duplicate.
        return {"rows": len(self.objective)} | ({"valid_rows": len(self.judge)} if self.judge else {})

    @property
    def _epoch(self) -> float:
        return self.progress.step / self.order.steps_per_epoch

    def _settle(self) -> None:
        """What follows a step: evaluation, a checkpoint when one is due, the end when somebody asks for it."""
        best = self._evaluation_due and self._evaluate()
        self.progress.settled = True
        step, last = self.progress.step, self.spec.total_steps
        if best or step == last or self._listed_due:
            self._save("epoch")
        elif self._recovery_due:
            self._save("recovery")
        if self.draining() and step < last:
            self._hand_back()

    @property
    def _asked(self) -> str | None:
        """When to stop, in the word that the supervisor wrote; None as long as nobody asks."""
        try:
            return (self.folder / STOP).read_text().strip()
        except FileNotFoundError:
            return None

    @property
    def _stop_due(self) -> bool:
        """Whether the run is to end after the step just done. One that has learned nothing goes on."""
        if self.progress.step == 0:
            return False
        at = self._asked
        if at is None:
            return False
        if at == "epoch":
            return self.progress.step % self.order.steps_per_epoch == 0
        return at != "checkpoint" or self.saved_at == self.progress.step

    def _stop(self) -> None:
        if not self._evaluation_due:
            self._evaluate()
        if self.saved_at != self.progress.step:
            self._save("recovery")

    @property
    def _evaluation_due(self) -> bool:
        if self.valid is None and not self.answerer:
            return False
        every = self.spec.eval_every or self.order.steps_per_epoch
        return self.progress.step % every == 0 or self.progress.step == self.spec.total_steps

    @property
    def _listed_due(self) -> bool:
        """Whether a checkpoint for the user is due."""
        if self.spec.checkpoint_seconds is not None:
            return time.monotonic() - self.listed_time >= self.spec.checkpoint_seconds
        return self.progress.step % (self.spec.checkpoint_every or self.order.steps_per_epoch) == 0

    @property
    def _recovery_due(self) -> bool:
        steps = self.progress.step - self.saved_at
        seconds = time.monotonic() - self.saved_time
        share = max(1, math.floor(self.spec.recovery_fraction * self.spec.total_steps))
        most = self.spec.recovery_overhead
        worth = most is None or seconds * most >= _UPLOADED * self.saving_seconds
        return (steps >= share and worth) or seconds >= self.spec.recovery_seconds

    def _evaluate(self) -> bool:
        """Answers and the validation loss; whether the latter is the best so far, where that matters."""
        # In this order: what was seen to be the best is kept at once, and nothing can come between.
        if self.answerer:
            self._answer("model")
        return self.judge is not None and self._measure()

    def _answer(self, by: Literal["base", "model"]) -> None:
        """Only the first process asks: all of them hold the same model."""
        if self.ranks.first:
            self.events.emit("phase", phase="evaluating")
            answers = self.answerer.ask(self.model, base=by == "base", look=self._look)
            self.events.emit("answers", step=self.progress.step, by=by, answers=answers)
            self.events.emit("phase", phase="training")

    @torch.inference_mode()
    def _measure(self) -> bool:
        """The loss over all validation rows, as the training loss is weighed. Sums only: logits are never kept.

        Whether it is the best so far.
        """
        assert self.judge is not None
        self.events.emit("phase", phase="evaluating")
        began = time.perf_counter()
        chosen = list(range(len(self.judge)))
        told = torch.zeros(self.judge.told, dtype=torch.float64, device=self.model.device)
        self.model.module.eval()
        whole = self.judge.begin(self.model, chosen, self.ranks)
        for micro_batch in self.judge.cut(self.ranks.share(chosen)):
            self._look()
            told += self.judge.measure(self.model, micro_batch, whole)
        self.model.module.train()
        self.ranks.sum_([told])
        metrics = {f"valid_{name}": value for name, value in self.judge.metrics(told, whole).items()}
        loss = metrics["valid_loss"]
        if loss is not None and not math.isfinite(loss):
            raise self._lost("validation loss is")
        self.progress.metrics |= metrics
        seconds = time.perf_counter() - began
        tokens = self.judge.tokens(chosen)
        self.events.emit("eval", step=self.progress.step, tokens=tokens, seconds=seconds, **metrics)
        self.events.emit("phase", phase="training")
        return self.best is not None and self.best.look(
            self.progress.best, self.progress.step, math.nan if loss is None else loss
        )

    def _save(self, kind: Kind) -> None:
        step, began = self.progress.step, time.perf_counter()
        path = f"checkpoints/step-{step}"
        if self.ranks.first:
            self.progress.metrics["adapter_moved"] = self.movement.share()
            checkpoint.save(
                self.folder / path,
                self.model,
                self.optimizer,
                State(
                    progress=self.progress,
                    epoch=self._epoch,
                    cursor=min(step % self.order.steps_per_epoch * self.spec.batch_size, len(self.rows)),
                    config_sha256=self.config,
                    fingerprint=self.fingerprint,
                    rng=checkpoint.random_state(self.model),
                    scaler=self.model.scaler.state_dict(),
                ),
                reference=self._reference_scores(),
                best=self.best.weights if self.best and self.progress.best.step != step else None,
            )
        self.saved_at, self.saved_time = step, time.monotonic()
        self.saving_seconds = time.perf_counter() - began
        if kind == "epoch":
            self.listed_time = self.saved_time
        self.events.emit(
            "checkpoint",
            step=step,
            epoch=self._epoch,
            path=path,
            kind=kind,
            metrics=self.progress.metrics,
            good_step=self.progress.course.good_step,
        )

    def _hand_back(self) -> None:
        # Before the first step there is nothing to save.
        if self.saved_at != self.progress.step:
            self._save("recovery")
        raise Drained

    def _resume(self, folder: Path) -> Progress:
        state = checkpoint.load(folder, self.model, self.optimizer, self.config)
        progress = state.progress
        self.resumed_from = self.saved_at = progress.step
        if self.best is not None and progress.best.step is not None:
            self.best.keep()
            if progress.best.step != progress.step:
                self.best.weights = checkpoint.best(folder)
        different = {
            name: {"then": state.fingerprint.get(name), "now": now}
            for name, now in self.fingerprint.items()
            if state.fingerprint.get(name) != now
        }
        if different:
            self.events.message(
                "warn",
                f"Resumed from step {progress.step} on different ground ({', '.join(different)}): "
                "the numbers may differ in their last digits from a run that was never stopped.",
                code="resume_inexact",
                different=different,
            )
        return progress

    def _take_moments(self, folder: Path) -> None:
        try:
            checkpoint.take_moments(self.model, self.optimizer, folder)
        except (KeyError, ValueError) as error:
            message = "The optimizer's state that the job is to go on with is of another optimizer or other parameters."
            raise Refused("init_mismatch", message, "resume_optimizer") from error

    def _found(self) -> OptimSpec:
        """The optimizer's values, with the rate that is found where one is to be; a resumed run remembers it."""
        optim, progress = self.spec.optim, self.progress
        if optim.find and progress.learning_rate is None:
            self.events.emit("phase", phase="evaluating")
            found = find.find(self.spec, self.model, self.objective, self.ranks, self._look)
            progress.learning_rate = found.learning_rate or optim.learning_rate
            self.events.emit("found", used=progress.learning_rate, **asdict(found))
        return (
            optim
            if progress.learning_rate is None
            else optim.model_copy(update={"learning_rate": progress.learning_rate})
        )

    def _look(self) -> None:
        if self.ranks.size == 1 and self.draining():
            self._hand_back()

    def _refer(self) -> None:
        """What the reference says of every row: the policy before its first step, asked once and kept."""

        judged = {"train": self.objective, "valid": self.judge} if self.judge else {"train": self.objective}
        kept = None if self.spec.resume is None else checkpoint.reference(self.folder / self.spec.resume)
        if kept is None:
            self.events.emit("phase", phase="evaluating")
            self.events.message("info", "Asking the reference, the model as it is before its first step, once a row.")
            self.model.module.eval()
            with torch.no_grad():
                kept = {name: _scored(one).score(self.model, self.ranks, self._look) for name, one in judged.items()}
        for name, one in judged.items():
            _scored(one).reference = kept[name].to(self.model.device)

    def _reference_scores(self) -> dict[str, Tensor]:
        judged = {"train": self.objective, "valid": self.judge}
        found = {name: getattr(one, "reference", None) for name, one in judged.items()}
        return {name: scores for name, scores in found.items() if scores is not None}

    def _refuse_steps_without_weight(self) -> None:
        """A step whose tokens all weigh nothing has no loss: say so before the first step, not at the last."""
        weights = self.objective.weights
        if (weights > 0).all():
            return
        for step, chosen in self.order.steps(0, self.spec.total_steps):
            if weights[chosen].sum() <= 0:
                lines = ", ".join(map(str, self.objective.lines(sorted(chosen)[:10])))
                message = f"Step {step} has no token to learn from (lines {lines})."
                raise Refused("nothing_to_learn", message, "training_file")


def objective(spec: TrainSpec, rows: Rows, model: Model) -> Objective:
    """What the job's method learns from these rows."""
    if spec.preference is None:
        return Supervised(rows, spec.prompt_loss_weight, spec.micro_batch_size, model.device, spec.packing)
    return Preference(rows, spec.preference, spec.micro_batch_size, model.device)


def _scored(one: Objective) -> Preference:
    assert isinstance(one, Preference)
    return one


def _named(measured: dict[str, float | None], prefix: str) -> dict[str, float | None]:
    """Loss and accuracy are told of training and validation; a completion loss or a reward goes by its own name."""
    return {f"{prefix}{name}" if name in ("loss", "accuracy") else name: value for name, value in measured.items()}
