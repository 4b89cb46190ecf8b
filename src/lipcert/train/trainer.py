"""The training loop: one for every loss, bound and device."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lipcert.bounds.result import Estimate
from lipcert.data import Dataset, load, split
from lipcert.errors import BoundError, CheckpointError, ConfigError, TrainingError
from lipcert.layers.normalised import settled
from lipcert.parallel import ALONE, Ranks
from lipcert.train.adversarial import moved, sample_by_sample
from lipcert.train.bound import TrainingBound
from lipcert.train.captured import CapturedSteps, Numbers
from lipcert.train.checkpoint import check_matches, load_state, save_state
from lipcert.train.deferred import SETTLE
from lipcert.train.evaluate import Evaluation, evaluate
from lipcert.train.factory import average_into, default_device, make_batches, make_bound, make_loss, make_optimizer
from lipcert.train.gain import GainBound
from lipcert.train.health import advice, check_finite, is_stuck
from lipcert.train.interrupt import Interrupted, stop_on_signal
from lipcert.train.losses import margin_radii
from lipcert.train.precision import check_channels_last, computes_bfloat16
from lipcert.train.progress import SilentReporter
from lipcert.train.run_folder import RunFolder, build_model
from lipcert.train.schedules import average_decay, learning_rate, loss_values
from lipcert.train.schema import RobustLoss, RunConfig
from lipcert.train.snapshot import put_back, take
from lipcert.train.start import Start
from lipcert.train.summary import epoch_record, summarise, title

__all__ = ["Interrupted", "Trainer"]


class Trainer:
    """Trains one network as a configuration says; interrupted at any point, it goes on exactly where it was.

    Several processes train it together, each on its part of every batch: what they find is what one would, up to
    rounding, and a run may go on with another number of them. The first writes and speaks; all read the same folder.

    Args:
        config: the run.
        out: its folder.
        root: where the data sets lie.
        download: fetch the data set if it is not there.
        device: by default CUDA where there is one.
        reporter: is told how it goes.
        ranks: the processes that train together; see :func:`lipcert.parallel.joined`.
        cuda_graphs: on a GPU, make the steps one CUDA graph each where they can be (:mod:`lipcert.train.captured`).
        start: a finished run, or a safetensors file, whose weights a new run begins with. A run that goes on has its
            own: give none.

    Raises:
        lipcert.errors.DataError: the data set is missing or damaged.
        lipcert.errors.ConfigError: the model or the folder does not fit, or there are too many processes.
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
        ranks: Ranks = ALONE,
        cuda_graphs: bool = True,
        start: RunFolder | str | Path | None = None,
    ) -> None:
        if config.model.options.get("folded"):
            raise ConfigError("a folded model has fixed weights and is not for training: train without folded=true.")
        self.config, self.folder, self.ranks = config, RunFolder(out), ranks
        self.reporter = reporter if reporter and ranks.first else SilentReporter()
        self.device, self._cuda_graphs = torch.device(device or default_device()), cuda_graphs
        self.bfloat16 = config.train.precision == "bfloat16" and computes_bfloat16(self.device)
        with ranks.first_alone(self.device):
            self.train_data = load(config.data.name, "train", root=root, download=download)
            if config.data.validation:
                self.train_data, self.eval_data = split(self.train_data, config.data.validation, config.seed)
                self.eval_split = "validation"
            else:
                self.eval_data = load(config.data.name, "test", root=root, download=download)
                self.eval_split = "test"
        if len(self.eval_data) < ranks.size:
            raise ConfigError(f"{len(self.eval_data)} images to evaluate are too few for {ranks.size} processes.")
        self._start = None if start is None else Start.of(start)
        self._create(self.train_data)
        same = json.dumps([self._identity(), self.eval_data.fingerprint], sort_keys=True)
        ranks.check_same("configuration and data", same, self.device)

    def _create(self, data: Dataset) -> None:
        c = self.config
        torch.manual_seed(c.seed)
        layout = torch.channels_last if c.train.channels_last else torch.contiguous_format
        self.model: nn.Module = build_model(c.model, data.input_shape, data.num_classes)
        self.started: dict[str, Any] | None = None  # with whose weights
        if self._start is not None:
            self._start.put_into(self.model, c.model)
            self.started = self._start.described(self.model)
        if c.train.channels_last:
            check_channels_last(self.model, self.device)
        self.model = self.model.to(self.device)
        self.model = self.model.to(memory_format=layout)  # type: ignore[call-overload]
        if self.ranks.size > 1 and any(isinstance(m, _BatchNorm) for m in self.model.modules()):
            raise ConfigError(
                f"model '{c.model.name}' has BatchNorm, which would see each process's images by themselves: train it "
                "in one process, or without (norm=false)."
            )
        self.batches = make_batches(c, data, self.device, layout, self.ranks)
        last = c.train.epochs - 1 / len(self.batches)  # when the last step begins, in epochs
        if isinstance(c.loss, RobustLoss) and c.loss.start_epoch > last:
            raise ConfigError(
                f"loss.start_epoch ({c.loss.start_epoch:g}) is after the last step, which begins at {last:g}: the "
                "robust loss would never be used. Start it earlier."
            )
        self.loss = make_loss(c.loss)
        self.optimizer, self.numbers = make_optimizer(c, self.model), Numbers(self.device)
        b, shape = c.bound, data.input_shape
        start = None if self._start is None else self._start.scaling(self.model, shape, b)
        options: dict[str, Any] = {"seed": c.seed, "start": start}
        self.bound = make_bound(b, self.model, shape, every=b.every, iterations=b.power_iterations, **options)
        self.averaged = copy.deepcopy(self.model) if c.train.ema else None
        # A bound of its own: looking at a run, however often, leaves no trace in it.
        self.evaluation_bound = make_bound(b, self.deployed, shape, every=1, iterations=1, **options)
        self.bound.share(self.ranks)
        self.evaluation_bound.share(self.ranks)
        self.found: Evaluation | None = None  # by the last evaluation
        self.epoch, self.batch, self.seconds, self.flat = 0, 0, 0.0, 0
        # Of this epoch: loss, hits, samples, hits with a radius above the first of eval_epsilons (an estimate).
        self.sums = torch.zeros(4, dtype=torch.float64, device=self.device)
        self.rate = c.optimizer.lr  # of the last step
        self.elapsed = 0.0  # seconds of this epoch before the run was taken up
        self.robust_before = False
        self.stopped: Callable[[], bool] = lambda: False
        self.asked = torch.zeros(1, device=self.device)
        self.captured = self._capturing()

    def _capturing(self) -> CapturedSteps | None:
        """What makes steps CUDA graphs, where they can be: alone on a GPU, and all steps doing the same."""
        alike = isinstance(self.bound, TrainingBound) and self.bound.every == 1
        known = isinstance(self.optimizer, (torch.optim.Adam, torch.optim.AdamW))
        if not (self._cuda_graphs and self.device.type == "cuda" and self.ranks.size == 1 and alike and known):
            return None
        self.optimizer._warned_capturable_if_run_uncaptured = True  # its first steps are
        return CapturedSteps(self._work, self.device, self.reporter.message)

    # --- state --------------------------------------------------------------------------------------------
    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with, the number of epochs included: the schedules follow from it."""
        return {"config": self.config.to_dict(), "data": self.train_data.fingerprint}

    def save(self) -> None:
        """Write the whole state, atomically."""
        self.bound.gather()
        self.evaluation_bound.gather()
        self.ranks.add(self.sums)
        if self.ranks.first:
            save_state(self.folder.checkpoint_file, take(self), self._identity())
        else:  # the first has them all
            self.sums.zero_()
        self.ranks.wait(self.device)

    def restore(self) -> None:
        """Take up the run from its checkpoint, or from the start if it has none yet.

        Raises:
            CheckpointError: it belongs to another configuration, model or data set, or is damaged.
        """
        if not self.folder.checkpoint_file.exists():
            if self.folder.summary_file.exists():
                raise CheckpointError(
                    f"the run in {self.folder.path} is finished, and its checkpoint is gone: there is nothing to go on "
                    "with. To train again choose another folder, or delete this one."
                )
            self._create(self.train_data)
            self._drop_metrics()
            return
        state, header = load_state(self.folder.checkpoint_file)
        check_matches(header, self._identity())
        try:
            put_back(self, state)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{self.folder.checkpoint_file} does not fit this model: {str(error).splitlines()[0]}"
            ) from error
        if not self.ranks.first:
            self.sums.zero_()
        for bound in (self.bound, self.evaluation_bound):
            bound.keep_once()
        if self.captured is not None:
            self.captured.forget()
        self._drop_metrics()

    def _drop_metrics(self) -> None:
        if self.ranks.first:
            self.folder.drop_metrics_after(self.epoch)
        self.ranks.wait(self.device)

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
            ConfigError: there is a run in the folder, or another training is at work in it.
        """
        if resume and self.folder.config() != self.config:
            raise CheckpointError(f"the run in {self.folder.path} has another configuration: see its config.toml")
        if resume and self._start is not None:
            raise ConfigError("a run that goes on has its weights already: start= is for a new run.")
        with self.folder.held() if self.ranks.first else nullcontext():
            if not resume:
                self._begin()
            return self._fit(resume, steps)

    def _begin(self) -> None:
        """Make a run of the folder. Where its weights are given they come first: without them it would not go on so."""
        if self.ranks.first:
            self.folder.check_new()
        try:
            if self._start is not None:
                self.ranks.wait(self.device)  # what is refused leaves nothing behind
                self.save()
            if self.ranks.first:
                self.folder.begin(self.config)
        except BaseException:  # Ctrl-C too: weights alone are no run
            if self.ranks.first and not self.folder.exists:
                self.folder.checkpoint_file.unlink(missing_ok=True)
            raise

    def _fit(self, resume: bool, steps: int | None) -> dict[str, Any]:
        c = self.config.train
        if resume:
            self.restore()
            summary = self.folder.finished() if self.epoch == c.epochs else None
            if summary is not None:
                self.reporter.message(f"The run in {self.folder.path} is finished: nothing is left to do.")
                return summary
        finished = False
        try:
            self.reporter.start(title(self), c.epochs, self.epoch, len(self.batches))
            with stop_on_signal(launched=self.ranks.size > 1) as stopped:
                while self.epoch < c.epochs:
                    if steps == 0:
                        self._stop()
                    self.stopped = stopped
                    steps = self._run_epoch(steps)
            assert self.found is not None  # the last epoch is always evaluated
            summary = summarise(self, self.found)
            if self.ranks.first:
                data = self.train_data
                self.folder.save_model(self.deployed, self.config, data.input_shape, data.classes)
                if isinstance(self.evaluation_bound, GainBound):
                    self.folder.save_scaling(self.evaluation_bound.weights, self.config)
                self.folder.write_summary(summary)
            self.ranks.wait(self.device)
            finished = True
            return summary
        finally:
            self.reporter.stop(finished)
            if self.captured is not None:
                self.captured.forget()  # and with it the memory of a whole step

    @property
    def deployed(self) -> nn.Module:
        """The weights that are evaluated and kept, the averaged ones where there are any."""
        return self.model if self.averaged is None else self.averaged

    def _run_epoch(self, steps: int | None) -> int | None:
        c, began, shown = self.config.train, time.monotonic(), 0.0
        self.model.train()
        number = self.epoch + 1
        for x, y in self.batches.epoch(self.epoch, start=self.batch):
            self._step(x, y)
            self.batch += 1
            if time.monotonic() - shown > 0.25:
                shown = time.monotonic()
                loss, hits, seen, robust = self.sums.tolist()
                self._check_finite(loss)
                known = self.robust_before  # while the loss is plain cross-entropy nobody follows the bound
                whole = loss_values(self.config.loss, self.epoch) is not None  # so since the epoch began
                certified = robust / seen if known and whole and c.eval_epsilons else None
                bound = float(self.bound.value.max()) if known else None
                self.reporter.step(number, self.batch, loss / seen, hits / seen, certified=certified, bound=bound)
            if steps is not None:
                steps -= 1
            if self._to_stop() or steps == 0:
                self._spend(began)
                self._stop()
        last = number == c.epochs
        looked_at = last or number % c.eval_every == 0
        if looked_at and self.ranks.size > 1:  # whoever launched them may kill them while they look
            self.save()
        self.ranks.add(self.sums)
        loss, hits, seen, _ = self.sums.tolist()
        self._check_finite(loss, self.model)
        self.epoch, self.batch = number, 0
        self.sums.zero_()
        self._spend(began)
        elapsed, self.elapsed = self.elapsed, 0.0
        if looked_at:
            self.found = found = self.evaluate()
            record = epoch_record(self, found, loss=loss, hits=hits, seen=seen, seconds=elapsed)
            if self.ranks.first:
                self.folder.log(record)
            self.reporter.epoch(record)
            self._check_collapse(found)
        if last or self.epoch % c.checkpoint_every == 0:
            self.save()
        return steps

    def _stop(self) -> NoReturn:
        sums = self.sums.clone()
        self.ranks.add(sums)
        self._check_finite(float(sums[0]), self.model)
        self.save()
        epoch, epochs = self.epoch + 1, self.config.train.epochs
        raise Interrupted(f"stopped in epoch {epoch} of {epochs}; the state is saved in {self.folder.path}")

    def _spend(self, began: float) -> None:
        spent = time.monotonic() - began
        self.seconds, self.elapsed = self.seconds + spent, self.elapsed + spent

    def _to_stop(self) -> bool:
        """Whether this process was asked to stop, or, before this step, any of several."""
        return self.stopped() if self.ranks.size == 1 else bool(self.asked)

    def _step(self, x: Tensor, y: Tensor) -> None:
        done = self.epoch * len(self.batches) + self.batch
        self._set_numbers(done)
        if self.captured is None:
            self._work(x, y)
        else:
            self.captured(x, y)
        if self.averaged is not None:
            average_into(self.averaged, self.model, average_decay(self.config.train.ema, done))

    def _set_numbers(self, done: int) -> None:
        """All that schedules give, ``done`` steps into the run; where a CUDA graph reads it, if there is one."""
        c, graphed = self.config, self.captured is not None
        self.rate = learning_rate(
            done, steps_per_epoch=len(self.batches), epochs=c.train.epochs, lr=c.optimizer.lr, schedule=c.schedule
        )
        for group in self.optimizer.param_groups:
            group["lr"] = self.numbers.put("lr", self.rate) if graphed else self.rate
            if "capturable" in group:
                group["capturable"] = graphed
        values = loss_values(c.loss, done / len(self.batches))
        if (values is not None) != self.robust_before and self.captured is not None:
            self.captured.forget()  # the step is another one from now on
        if values is None:
            self.robust_before = False
            return
        if not self.robust_before:  # the weights have moved without the bound being looked at
            self.bound.refresh(SETTLE)
            self.robust_before = True
        for name, value in values.items():
            setattr(self.loss, name, self.numbers.put(name, value) if graphed else value)

    def _work(self, x: Tensor, y: Tensor) -> None:
        """All of a step that is on the device. Nothing here waits for a GPU, or chooses by what is on it."""
        c = self.config
        if c.train.adversarial:
            with sample_by_sample(self.model):
                x = moved(self._logits, x, y, c.train.adversarial)
        logits = self._logits(x)
        loss = self._loss(logits, y)
        self.optimizer.zero_grad(set_to_none=True)
        if self.ranks.size == 1:
            loss.backward()  # type: ignore[no-untyped-call]
        else:  # the mean over the whole batch is that of the parts, each by its share of it
            (loss * (len(y) / self.batches.batch_size)).backward()  # type: ignore[no-untyped-call]
            self.asked.fill_(float(self.stopped()))
            self.ranks.add(*(p.grad for p in self.model.parameters() if p.grad is not None), self.asked)
        if c.optimizer.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), c.optimizer.clip_norm)
        self.optimizer.step()
        with torch.no_grad():
            hits = (logits.argmax(1) == y).sum()
            robust = torch.zeros_like(hits)
            if self.robust_before and c.train.eval_epsilons:
                found = margin_radii(logits, y, self.bound.value).min(1).values
                robust = (found > c.train.eval_epsilons[0]).sum()
            self.sums += torch.stack([loss.detach() * len(y), hits, torch.full_like(hits, len(y)), robust]).double()

    def _logits(self, x: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            logits: Tensor = self.model(x)
        return logits.float()

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if not self.robust_before:
            return nn.functional.cross_entropy(logits, labels)
        result: Tensor = self.loss(logits, labels, self.bound())
        return result

    # --- looking at it ------------------------------------------------------------------------------------
    def evaluate(self) -> Evaluation:
        """Accuracies of the deployed weights on the evaluation split, with the bound estimated."""
        c = self.config
        if not self.ranks.agree(list(self.deployed.parameters())):
            raise TrainingError(
                "the processes have come to different weights: they must run the same program on the same data, on "
                f"machines of one kind. {advice(self.folder.checkpoint_file)}"
            )
        try:
            with settled(self.deployed):
                value = self.evaluation_bound.settle()
                estimate = Estimate(value.double().cpu(), c.bound.method, c.bound.scope)
                at = c.train.eval_epsilons
                return evaluate(self.deployed, self.eval_data, estimate, at, device=self.device, ranks=self.ranks)[0]
        except BoundError as error:
            hint = advice(self.folder.checkpoint_file)
            raise TrainingError(
                f"the network can no longer be bounded in epoch {self.epoch}: {error} {hint}"
            ) from error

    def _check_finite(self, loss: float, module: nn.Module | None = None) -> None:
        check_finite(loss, module, self.epoch + 1, self.folder.checkpoint_file)

    def _check_collapse(self, found: Evaluation) -> None:
        self.flat = self.flat + 1 if found.collapsed else 0
        epochs, steps = self.config.train.epochs, self.epoch * len(self.batches)
        said = f"one class for every input (L ≤ {found.bound_high:.2g})"
        if is_stuck(self.flat, found.bound_high, epoch=self.epoch, epochs=epochs, steps=steps):
            hint = advice(self.folder.checkpoint_file)
            raise TrainingError(f"the network has collapsed: in epoch {self.epoch} it predicts {said}. {hint}")
        if found.collapsed and self.epoch == epochs:
            self.reporter.message(f"Careful: the network has not learned, it predicts {said}.")
