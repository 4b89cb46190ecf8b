"""The training loop: one for every loss, bound and device."""

from __future__ import annotations

import copy
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from lipcert.bounds.result import Estimate
from lipcert.data import Augment, Batches, Dataset, load, split
from lipcert.errors import CheckpointError, TrainingError
from lipcert.train.bound import TrainingBound
from lipcert.train.checkpoint import check_matches, load_state, save_state
from lipcert.train.evaluate import Evaluation, evaluate
from lipcert.train.losses import CRMLoss, CrossEntropy, GloRoLoss, LMTLoss
from lipcert.train.progress import SilentReporter
from lipcert.train.run_folder import RunFolder, build_model
from lipcert.train.schedules import learning_rate, loss_values, value_at
from lipcert.train.schema import AdamConfig, CEConfig, CRMConfig, GloRoConfig, LMTConfig, LossConfig, RunConfig
from lipcert.train.summary import summarise

__all__ = ["Interrupted", "Trainer", "make_loss", "make_optimizer"]

_SETTLE = 20  # power iterations before a bound is looked at that has not been used for a while
_PATIENCE = 2  # evaluations in a row with one predicted class, until a run is declared collapsed


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop, and its state is saved."""


def make_loss(config: LossConfig) -> nn.Module:
    """The loss module of a configuration, at the values of epoch 0."""
    if isinstance(config, CEConfig):
        return CrossEntropy()
    if isinstance(config, CRMConfig):
        return CRMLoss(
            temperature=config.temperature,
            radius_cap=value_at(config.radius_cap, 0),
            weight=value_at(config.weight, 0),
            form=config.form,
        )
    if isinstance(config, LMTConfig):
        return LMTLoss(epsilon=value_at(config.epsilon, 0))
    if isinstance(config, GloRoConfig):
        return GloRoLoss(epsilon=value_at(config.epsilon, 0))
    return GloRoLoss(epsilon=value_at(config.epsilon, 0), weight=value_at(config.weight, 0))


def make_optimizer(config: RunConfig, module: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a configuration; the learning rate is set before each step."""
    o, parameters = config.optimizer, [p for p in module.parameters() if p.requires_grad]
    if isinstance(o, AdamConfig):
        kind = torch.optim.AdamW if o.kind == "adamw" else torch.optim.Adam
        return kind(parameters, lr=o.lr, betas=o.betas, weight_decay=o.weight_decay, fused=True)
    return torch.optim.SGD(parameters, lr=o.lr, momentum=o.momentum, weight_decay=o.weight_decay, fused=True)


class Trainer:
    """Trains one network as a configuration says; interrupted at any point, it goes on exactly where it was.

    Args:
        config: the run.
        out: its folder.
        root: where the data sets lie.
        download: fetch the data set if it is not there.
        device: by default CUDA where there is one.
        reporter: is told how it goes.

    Raises:
        lipcert.errors.DataError: the data set is missing or damaged.
        lipcert.errors.ConfigError: the model or the folder does not fit.
    """

    def __init__(
        self,
        config: RunConfig,
        out: str | Path,
        *,
        root: str | Path | None = None,
        download: bool = False,
        device: torch.device | str | None = None,
        reporter: SilentReporter | None = None,
    ) -> None:
        self.config, self.folder = config, RunFolder(out)
        self.reporter = reporter or SilentReporter()
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.train_data = load(config.data.name, "train", root=root, download=download)
        if config.data.validation:
            self.train_data, self.eval_data = split(self.train_data, config.data.validation, config.seed)
            self.eval_split = "validation"
        else:
            self.eval_data = load(config.data.name, "test", root=root, download=download)
            self.eval_split = "test"
        self._create(self.train_data)

    def _create(self, data: Dataset) -> None:
        c = self.config
        torch.manual_seed(c.seed)
        layout = torch.channels_last if c.train.channels_last else torch.contiguous_format
        self.model: nn.Module = build_model(c.model, data.input_shape, data.num_classes).to(self.device)
        self.model = self.model.to(memory_format=layout)  # type: ignore[call-overload]
        a = c.data.augment
        augment = Augment(flip=a.flip, shift=a.shift, rotate=a.rotate) if a.flip or a.shift or a.rotate else None
        self.batches = Batches(
            data,
            min(c.train.batch_size, len(data)),
            shuffle=True,
            seed=c.seed,
            augment=augment,
            device=self.device,
            drop_last=True,
            memory_format=layout,
        )
        self.loss = make_loss(c.loss)
        self.optimizer = make_optimizer(c, self.model)
        self.bound = TrainingBound(
            self.model,
            data.input_shape,
            method=c.bound.method,
            scope=c.bound.scope,
            every=c.bound.every,
            iterations=c.bound.power_iterations,
            seed=c.seed,
        )
        self.averaged = copy.deepcopy(self.model) if c.train.ema else None
        self.averaged_bound = (
            TrainingBound(self.averaged, data.input_shape, method=c.bound.method, scope=c.bound.scope, seed=c.seed)
            if self.averaged is not None
            else None
        )
        self.epoch, self.batch, self.seconds, self.flat = 0, 0, 0.0, 0
        self._sums = torch.zeros(3, dtype=torch.float64, device=self.device)  # loss, hits, samples of this epoch
        self._robust_before = False

    # --- state --------------------------------------------------------------------------------------------
    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with; the number of epochs may grow, the rest may not change."""
        return {"config": self.config.to_dict(), "data": self.train_data.fingerprint}

    def save(self) -> None:
        """Write the whole state, atomically."""
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "bound": self.bound.state_dict(),
            "sums": self._sums,
            "random": torch.get_rng_state(),
            "counters": [self.epoch, self.batch, self.seconds, self.flat, self._robust_before],
        }
        if self.averaged is not None and self.averaged_bound is not None:
            state["averaged"] = self.averaged.state_dict()
            state["averaged_bound"] = self.averaged_bound.state_dict()
        if self.device.type == "cuda":
            state["random_cuda"] = torch.cuda.get_rng_state(self.device)
        save_state(self.folder.checkpoint_file, state, self._identity())

    def restore(self) -> None:
        """Take up the run from its checkpoint, or from the start if it has none yet.

        Raises:
            CheckpointError: it belongs to another configuration, model or data set, or is damaged.
        """
        if not self.folder.checkpoint_file.exists():
            self.folder.drop_metrics_from(0)
            return
        state, header = load_state(self.folder.checkpoint_file)
        check_matches(header, self._identity())
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.bound.load_state_dict(state["bound"])
            if self.averaged is not None and self.averaged_bound is not None:
                self.averaged.load_state_dict(state["averaged"])
                self.averaged_bound.load_state_dict(state["averaged_bound"])
            self._sums.copy_(state["sums"])
            torch.set_rng_state(state["random"])
            if self.device.type == "cuda" and "random_cuda" in state:
                torch.cuda.set_rng_state(state["random_cuda"], self.device)
            self.epoch, self.batch, self.seconds, self.flat, self._robust_before = state["counters"]
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{self.folder.checkpoint_file} does not fit this model: {str(error).splitlines()[0]}"
            ) from error
        self.folder.drop_metrics_from(self.epoch)

    # --- the loop -----------------------------------------------------------------------------------------
    def fit(self, *, resume: bool = False, steps: int | None = None) -> dict[str, Any]:
        """Train to the end and write the run folder.

        Args:
            resume: go on with the run in the folder.
            steps: stop after this many steps, as if interrupted (for tests).

        Returns:
            The summary.

        Raises:
            Interrupted: on Ctrl-C or SIGTERM, after the state was saved.
            TrainingError: the loss is not finite, or the network collapsed to a constant.
        """
        if resume:
            self.folder.config()  # says so if there is no run
            self.restore()
        else:
            self.folder.create(self.config)
        c = self.config.train
        title = f"{self.config.name}: {sum(p.numel() for p in self.model.parameters()):,} parameters on {self.device}"
        self.reporter.start(title, c.epochs, self.epoch, len(self.batches))
        try:
            with _stop_on_signal() as stopped:
                while self.epoch < c.epochs:
                    steps = self._run_epoch(stopped, steps)
            summary = summarise(self)
            self.folder.save_model(self.deployed, self.config, self.train_data.input_shape, self.train_data.classes)
            self.folder.write_summary(summary)
            return summary
        finally:
            self.reporter.stop()

    @property
    def deployed(self) -> nn.Module:
        """The weights that are evaluated and kept: the averaged ones where there are any."""
        return self.model if self.averaged is None else self.averaged

    def _run_epoch(self, stopped: Callable[[], bool], steps: int | None) -> int | None:
        c, began, shown = self.config.train, time.monotonic(), 0.0
        self.model.train()
        number = self.epoch + 1
        for x, y in self.batches.epoch(self.epoch, start=self.batch):
            self._step(x, y)
            self.batch += 1
            if time.monotonic() - shown > 0.25:
                shown = time.monotonic()
                loss, hits, seen = self._sums.tolist()
                self._check_finite(loss)
                self.reporter.step(number, self.batch, loss / seen, hits / seen)
            if steps is not None:
                steps -= 1
            if stopped() or steps == 0:
                self.seconds += time.monotonic() - began
                self.save()
                raise Interrupted(f"stopped in epoch {number}; the state is saved in {self.folder.path}")
        loss, hits, seen = self._sums.tolist()
        self._check_finite(loss)
        self.epoch, self.batch = number, 0
        self._sums.zero_()
        elapsed = time.monotonic() - began
        self.seconds += elapsed
        last = self.epoch == c.epochs
        if last or self.epoch % c.eval_every == 0:
            found = self.evaluate()
            record = {
                "epoch": self.epoch,
                "loss": loss / seen,
                "train_accuracy": hits / seen,
                "split": self.eval_split,
                "clean": found.clean,
                "estimated_certified": {f"{e:.4g}": v for e, v in found.robust.items()},
                "bound": [found.bound_low, found.bound_high],
                "lr": self.optimizer.param_groups[0]["lr"],
                "seconds": elapsed,
                "images_per_second": seen / elapsed,
            }
            self.folder.log(record)
            self.reporter.epoch(record)
            self._check_collapse(found)
        if last or self.epoch % c.checkpoint_every == 0:
            self.save()
        return steps

    def _step(self, x: Tensor, y: Tensor) -> None:
        c = self.config
        done = self.epoch * len(self.batches) + self.batch
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(
                done, steps_per_epoch=len(self.batches), epochs=c.train.epochs, lr=c.optimizer.lr, schedule=c.schedule
            )
        with torch.autocast(self.device.type, torch.bfloat16, enabled=c.train.precision == "bfloat16"):
            logits = self.model(x)
        loss = self._loss(logits.float(), y, done / len(self.batches))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if c.optimizer.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), c.optimizer.clip_norm)
        self.optimizer.step()
        if self.averaged is not None:
            _average(self.averaged, self.model, c.train.ema)
        with torch.no_grad():
            hits = (logits.argmax(1) == y).sum()
            self._sums += torch.stack([loss.detach() * len(y), hits, torch.full_like(hits, len(y))]).double()

    def _loss(self, logits: Tensor, labels: Tensor, epoch: float) -> Tensor:
        values = loss_values(self.config.loss, epoch)
        if values is None:
            self._robust_before = False
            return nn.functional.cross_entropy(logits, labels)
        if not self._robust_before:  # the weights have moved without the bound being looked at
            self.bound.refresh(_SETTLE)
            self._robust_before = True
        for name, value in values.items():
            setattr(self.loss, name, value)
        result: Tensor = self.loss(logits, labels, self.bound())
        return result

    # --- looking at it ------------------------------------------------------------------------------------
    def evaluate(self) -> Evaluation:
        """Accuracies of the deployed weights on the evaluation split, with the bound estimated."""
        bound = self.bound if self.averaged_bound is None else self.averaged_bound
        value = bound.refresh(_SETTLE).double().cpu()
        estimate = Estimate(value, self.config.bound.method, self.config.bound.scope)
        epsilons = self.config.train.eval_epsilons
        found, _ = evaluate(self.deployed, self.eval_data, estimate, epsilons, device=self.device)
        return found

    def _check_finite(self, loss: float) -> None:
        if loss != loss or loss in (float("inf"), float("-inf")):
            raise TrainingError(
                f"the loss is not finite in epoch {self.epoch + 1}. Lower optimizer.lr, set optimizer.clip_norm (1 is "
                f"a good start), or start the robust term from the first epoch. The last checkpoint in "
                f"{self.folder.path} is from before."
            )

    def _check_collapse(self, found: Evaluation) -> None:
        self.flat = self.flat + 1 if found.collapsed else 0
        if self.flat >= _PATIENCE and self.epoch > 1:
            raise TrainingError(
                f"the network has collapsed: it predicts one class for every input (L ≤ {found.bound_high:.2g}), and "
                "does not recover from there. Lower loss.weight or optimizer.lr, set optimizer.clip_norm, or let "
                "loss.weight rise from 0 over the first epochs."
            )


def _average(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    with torch.no_grad():
        torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), 1 - decay)
        for mine, other in zip(averaged.buffers(), model.buffers(), strict=True):
            mine.copy_(other)


@contextmanager
def _stop_on_signal() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C or SIGTERM lets the step in flight finish; the second ends at once."""
    asked = False
    handled = (signal.SIGINT, signal.SIGTERM)

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    try:
        before = {s: signal.signal(s, ask) for s in handled}
    except ValueError:  # not in the main thread: nobody sends us signals there
        before = {}
    try:
        yield lambda: asked
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
