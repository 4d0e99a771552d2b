"""The training loop: steps, epochs, evaluation, logs and checkpoints of one run."""

from __future__ import annotations

import math
import signal
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fastres.training import checkpoint, rng
from fastres.training.averaging import Average
from fastres.training.config import TrainConfig
from fastres.training.data.feed import Feed
from fastres.training.data.loader import naming_lost_workers
from fastres.training.data.normalize import check_same_normalize
from fastres.training.data.sampler import EvaluationSampler, TrainSampler
from fastres.training.data.source import Source, Split
from fastres.training.distributed import World
from fastres.training.errors import (
    CheckpointError,
    Stopped,
    TrainingError,
    UsageError,
    out_of_memory,
)
from fastres.training.evaluate import Metrics, evaluate
from fastres.training.graph import GraphedStep, Graphs, cuda_graphs
from fastres.training.logs import RunLog
from fastres.training.optimizer import decay_groups, load_state, make_sgd, set_lr, state_of
from fastres.training.progress import Progress, Result, epoch_row
from fastres.training.reporter import Silent, epoch_line
from fastres.training.schedule import WARMUP_WINDOW, make_schedule
from fastres.training.signals import StopSignals

_NAMED = 20  # broken images that are skipped and named one by one

DTYPES = {"none": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Trainer:
    """One run. Build it, `resume` if there is a checkpoint, then `run`.

    The step's loss is the mean over the images of all processes, whatever each one's share.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: nn.Module,
        source: Source,
        world: World,
        device: torch.device,
        reporter: Silent,
        graphs: Graphs | None = None,
    ) -> None:
        if config.amp == "fp16" and device.type == "cpu":
            raise UsageError("amp 'fp16' needs a GPU; on a CPU use 'bf16'")
        if config.cuda_graph:
            graphs = graphs or cuda_graphs(device, world.size)
        self.config, self.source, self.world = config, source, world
        self.device, self.reporter = device, reporter
        self.out = Path(config.out)
        self._layout = torch.channels_last if config.channels_last else torch.preserve_format
        self.module = model.to(device, memory_format=self._layout).train()
        self.average: Average | None = None
        if config.ema_decay:
            self.average = Average(self.module, config.ema_decay, config.ema_every)
        self.network = self._distribute(self.module)
        groups = decay_groups(self.module, config.norm_decay)
        self.optimizer = make_sgd(
            groups, device, config.scaled_lr, config.momentum, config.weight_decay
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.amp == "fp16")
        self.sampler = TrainSampler(
            len(source.train), config.batch_size, config.seed, world.rank, world.size
        )
        self.steps_per_epoch = self.sampler.steps_per_epoch
        if config.iterations is not None:
            self.total = config.iterations
        else:
            self.total = config.epochs * self.steps_per_epoch
        self.epochs = -(-self.total // self.steps_per_epoch)
        self.schedule = make_schedule(config, self.steps_per_epoch)
        self.progress = Progress()
        self.result = Result()
        self._totals = torch.zeros(2, dtype=torch.float64, device=device)  # loss, correct
        self._lr = config.scaled_lr
        self._graphed: GraphedStep | None = None
        if config.cuda_graph:
            self._graphed = GraphedStep(self._optimise, self._place, config.batch_size, graphs)
        normalize = source.normalize
        self._normalize = None if normalize is None else normalize.as_dict()
        self._skipped_before = 0
        self._named: set[str] = set()
        self._log_positions: dict[str, int] = {}
        self._log: RunLog | None = None
        self._stop = StopSignals()
        self._train_loader = self._loader(source.train, self.sampler)
        self._held_out_loader = self._evaluation_loader(source.held_out)

    def _distribute(self, module: nn.Module) -> nn.Module:
        if self.world.size == 1:
            return module
        devices = [self.device.index] if self.device.type == "cuda" else None
        network = DistributedDataParallel(module, device_ids=devices, gradient_as_bucket_view=True)
        if self.config.sync_bn:
            # after the wrapping: DDP refuses SyncBatchNorm on a CPU, where torch's forward of it
            # cannot run, but the fused operators can; parameters and buffers stay the same tensors
            nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return network

    def _loader(self, split: Split, sampler: TrainSampler | EvaluationSampler) -> Feed:
        return Feed(split, sampler, self.config.workers, self.device, self._layout)

    def _evaluation_loader(self, split: Split) -> Feed:
        world = self.world
        sampler = EvaluationSampler(len(split), self.config.batch_size, world.rank, world.size)
        return self._loader(split, sampler)

    def resume(self, path: Path) -> None:
        """Goes on from a checkpoint exactly where its run stood.

        Only rank 0 reads it. Raises CheckpointError if it cannot be read, is of another network,
        or of a run whose images came in another order.
        """
        state = self.world.from_main(lambda: checkpoint.load(path))
        forbidden, changed = self.config.compare(state["config"])
        checkpoint.check_same_network(path, state["model"], self.module.state_dict())
        if forbidden:
            raise CheckpointError(f"{path} is of another run: {'; '.join(forbidden)}")
        check_same_normalize(path, state.get("normalize"), self.source.normalize)
        self.module.load_state_dict(state["model"])
        load_state(self.optimizer, state["optimizer"])
        self._lr = state["optimizer"]["param_groups"][0]["lr"]
        set_lr(self.optimizer, self._lr)
        self.schedule.load_state_dict(state["schedule"])
        if self.average is not None and not self.average.resume(state.get("average"), self.module):
            self.reporter.note(f"resume: {path} holds no averaged network, the average starts here")
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        self._totals = torch.tensor(
            [self.progress.loss_sum, self.progress.correct] if self.world.is_main else [0.0, 0.0],
            dtype=torch.float64,
            device=self.device,
        )
        self._log_positions = state["logs"]
        ranks = state["rng"]
        # with more processes than before, the new ones draw what rank 0 draws
        rng.restore(ranks[self.world.rank if self.world.rank < len(ranks) else 0])
        for words in changed:
            self.reporter.note(f"resume: {words}")
        self.reporter.note(
            f"resumed {path} at epoch {self.progress.epoch + 1}, step {self.progress.step}"
        )

    def _save(self, *names: str) -> None:
        generators = self.world.gather(rng.capture())
        progress = self.progress
        progress.skipped = self._skipped_before + self._count_skipped(self._train_loader)
        totals = self.world.sum_(self._totals.clone()).tolist()
        progress.loss_sum, progress.correct = totals
        if self._log is None:
            return
        if not math.isfinite(progress.loss_sum):
            self._raise_not_finite(progress.loss_sum)
        state = {
            "model": self.module.state_dict(),
            "optimizer": state_of(self.optimizer),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": dict(vars(progress)),
            "rng": generators,
            "config": self.config.as_dict(),
            "logs": self._log.positions(),
            "normalize": self._normalize,
            "classes": list(self.source.classes),
        }
        if self.average is not None:
            state["average"] = self.average.state_dict()
        for name in names:
            checkpoint.save(self.out / name, state)

    def run(self) -> Result:
        """Trains to the end. Raises Stopped after a signal, TrainingError when it cannot go on."""
        if self.world.is_main:
            self._log = RunLog(
                self.out, self._log_positions, self.progress.iteration, self.config.tensorboard
            )
        try:
            with self._stop, self.world.naming_lost_peers(), naming_lost_workers():
                while self.progress.iteration < self.total or self.progress.step > 0:
                    self._train_epoch()
                    self._finish_epoch()
                if self.source.test is not None:
                    self._test(self.source.test)
            return self.result
        except torch.OutOfMemoryError as error:
            sizes = self.config.batch_size, self.world.size
            raise TrainingError(out_of_memory(*sizes, self.config.amp)) from error
        finally:
            self._train_loader.close()
            self._held_out_loader.close()
            self.reporter.close()
            if self._log is not None:
                self._log.close()

    def _train_epoch(self) -> None:
        progress, config = self.progress, self.config
        left = self.total - progress.iteration
        steps = min(self.steps_per_epoch, progress.step + left)
        self.reporter.start_epoch(progress.epoch + 1, self.epochs, progress.step, steps)
        self.sampler.seek(progress.epoch, progress.step)
        self._train_loader.start_count()
        self._skipped_before = progress.skipped
        started, before, waited = time.perf_counter(), progress.seconds, progress.waited
        if progress.step < steps:
            for images, labels in self._train_loader:
                loss = self._step(images, labels)
                self._end_warm_up(steps)
                progress.seconds = before + time.perf_counter() - started
                progress.waited = waited + self._train_loader.waited
                if progress.iteration % config.log_every == 0:
                    self._log_step(loss)
                else:
                    self.reporter.step(progress.step, None)
                if config.save_every and progress.iteration % config.save_every == 0:
                    self._save("last.pt")
                self._check_stop()
                if progress.step == steps:
                    break
        if self.device.type == "cuda":  # the last steps may only be queued
            torch.cuda.synchronize(self.device)
        progress.seconds = before + time.perf_counter() - started
        self.reporter.end_epoch()

    def _step(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """One optimiser step; returns this process's part of the mean loss, still on the device."""
        progress = self.progress
        count = self.sampler.images_in(progress.step)
        self._lr = self.schedule.lr(progress.iteration)
        set_lr(self.optimizer, self._lr)
        if self._graphed is not None:
            loss_sum = self._graphed(images, labels)
        else:
            labels = labels.to(self.device, non_blocking=True)
            loss_sum = self._optimise(self._place(images), labels)
        progress.step += 1
        progress.iteration += 1
        progress.images += count
        if self.average is not None:
            warming = self.schedule.warmup.lasts(progress.iteration)
            self.average.update(self.module, progress.iteration, warming)
        return loss_sum / count

    def _end_warm_up(self, steps: int) -> None:
        """Shows the training error to a warm-up that waits for it: of the last WARMUP_WINDOW steps
        or, at an epoch's end, of the epoch."""
        progress = self.progress
        whole = progress.step % WARMUP_WINDOW == 0
        if not self.schedule.warmup.waits_for_error() or not (whole or progress.step == steps):
            return
        correct, images = float(self.world.sum_(self._totals.clone())[1]), progress.images
        if whole:
            seen = correct - progress.window_correct, images - progress.window_images
            progress.window_correct, progress.window_images = correct, images
        else:
            seen = correct, images
        self.schedule.warmup.observe(100 - 100 * seen[0] / seen[1])

    def _count_skipped(self, feed: Feed) -> int:
        """Times that a process could not read an image since its feed's count began; names them."""
        if not self.config.skip_broken:
            return 0
        names = [name for part in self.world.gather(feed.skipped) for name in part]
        for name in dict.fromkeys(names):
            if name not in self._named and len(self._named) < _NAMED:
                self._named.add(name)
                self.reporter.note(f"skipped: {name}")
        return len(names)

    def _optimise(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """What a step does on the device, and what a graph captures; returns the loss's sum."""
        with self._autocast():
            logits = self.network(images)
        logits = logits.float()
        smoothing = self.config.label_smoothing
        loss_sum = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        # DDP averages the gradients over the processes; the mean wanted is the one over images
        count = self.sampler.images_in(self.progress.step)
        self.scaler.scale(loss_sum * (self.world.size / count)).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        loss_sum = loss_sum.detach()
        correct = (logits.detach().argmax(1) == labels).sum()
        self._totals += torch.stack([loss_sum.double(), correct.double()])
        return loss_sum

    def _finish_epoch(self) -> None:
        progress = self.progress
        loss_sum, correct = self.world.sum_(self._totals.clone()).tolist()
        if not math.isfinite(loss_sum):
            self._raise_not_finite(loss_sum)
        progress.skipped = self._skipped_before + self._count_skipped(self._train_loader)
        metrics, averaged = self._evaluate(self._held_out_loader)
        progress.skipped += self._count_skipped(self._held_out_loader)
        lr = self.schedule.lr(progress.iteration - 1)
        row = epoch_row(progress, loss_sum, correct, lr, metrics, averaged)
        self.result.rows.append(row)
        self.schedule.observe(100 - metrics.top1)
        if self._log is not None:
            self._log.epoch(row, self.source.held_out_name)
        self.reporter.note(epoch_line(row, self.epochs, self.source.held_out_name))
        top1 = metrics.top1 if averaged is None else averaged.top1
        best = top1 > progress.best_top1
        self.progress = Progress(
            epoch=progress.epoch + 1,
            iteration=progress.iteration,
            best_top1=max(top1, progress.best_top1),
        )
        self._totals.zero_()
        self._skipped_before = 0
        self._train_loader.start_count()
        # best first: a kill between the two repeats the epoch and writes the same best again
        self._save(*(["best.pt"] if best else []), "last.pt")
        self._check_stop()

    def _test(self, split: Split) -> None:
        loader = self._evaluation_loader(split)
        try:
            self.result.test, self.result.averaged_test = self._evaluate(loader)
        finally:
            loader.close()

    def _evaluate(self, loader: Feed) -> tuple[Metrics, Metrics | None]:
        """Metrics of the network, and of the averaged one if there is one."""
        # shares differ in length, so several processes cannot agree on stopping in the middle
        check = self._check_stop if self.world.size == 1 else _no_check
        metrics: list[Metrics | None] = [None, None]
        for place, module in enumerate((self.module, self.average and self.average.module)):
            if module is not None:
                self.world.share_buffers(module)
                loader.start_count()
                metrics[place] = evaluate(
                    module, loader, self._place, self._autocast, self.world, check
                )
        return metrics[0], metrics[1]

    def _place(self, images: torch.Tensor) -> torch.Tensor:
        return images.to(self.device, non_blocking=True, memory_format=self._layout)

    def _autocast(self) -> torch.autocast:
        amp = self.config.amp
        return torch.autocast(self.device.type, dtype=DTYPES[amp], enabled=amp != "none")

    def _check_stop(self) -> None:
        signum = self.world.largest(self._stop.signum or 0)
        if not signum:
            return
        self._save("last.pt")
        progress = self.progress
        raise Stopped(
            f"stopped by {signal.Signals(signum).name} at epoch {progress.epoch + 1}, "
            f"step {progress.step}/{self.steps_per_epoch}; state saved in {self.out / 'last.pt'}, "
            "go on with --resume auto",
            signum,
        )

    def _raise_not_finite(self, loss: float) -> None:
        last = self.out / "last.pt"
        kept = f"; the last good state is in {last}" if last.exists() else ""
        raise TrainingError(
            f"the loss is {loss} at iteration {self.progress.iteration} "
            f"(lr {self._lr:g}): lower lr{kept}"
        )

    def _log_step(self, loss: torch.Tensor) -> None:
        progress = self.progress
        mean = float(self.world.sum_(loss.clone()))
        if not math.isfinite(mean):
            self._raise_not_finite(mean)
        self.reporter.step(progress.step, mean)
        if self._log is not None:
            self._log.step(
                {
                    "iteration": progress.iteration,
                    "epoch": progress.epoch + 1,
                    "lr": self._lr,
                    "loss": mean,
                }
            )


def _no_check() -> None:
    """Evaluation over several processes runs to its end."""
