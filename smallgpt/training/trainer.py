"""THE loop: step, and once in a while validate, save and stop.

What a model learns from, dialogues or reviews, is a `Task`: it says what the batch of a step is,
what its loss is, and what a validation measures. Everything else is here, once.
"""

import math
import sys
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from smallgpt.checkpoints import adapter, checkpoint, run_folder
from smallgpt.config import Config
from smallgpt.distributed import launch
from smallgpt.distributed.world import ALONE, World, replicate, without_averaging
from smallgpt.model import lora
from smallgpt.model.gpt import Block
from smallgpt.model.parameters import parameter_groups
from smallgpt.runtime import (
    Runtime,
    begin_to_read,
    can_compile,
    compile_blocks,
    on_host,
    seed_everything,
    undo_compile,
)
from smallgpt.tokenizer.characters import Tokenizer
from smallgpt.training.interruption import StopRequest, stop_on_signals
from smallgpt.training.metrics import Metrics, StepResult
from smallgpt.training.optimizer import apply_settings, make_optimizers
from smallgpt.training.schedule import Schedule, StepTimer, Stopwatch
from smallgpt.utils.errors import UserError, note
from smallgpt.utils.words import counted

MOST_OVERFLOWS = 40
"""Steps in a row with an infinite gradient, after which float16 is given up: from 65,536, the first
one, the loss scale has then fallen below what any gradient needs."""


class Measured(Protocol):
    """The result of a validation; `str` is its line."""

    def as_dict(self) -> dict[str, float]:
        """The figures by name, among them `validation_loss`: the best model has the lowest."""


class Task(ABC):
    """What a run learns from. All processes have the same one, and ask it for the same."""

    model: nn.Module
    """Moved to the device; what of it requires gradients is trained, in place."""
    tokenizer: Tokenizer
    labels: list[str] | None = None
    """Names of the classes, where the model is a classifier."""
    base: adapter.Base | None = None
    """The model that adapters are for, where only these learn and are saved."""
    steps_per_epoch: float
    keeps_every_best = False
    """Whether a checkpoint is written whenever a validation is the best so far."""
    saves_memory = "raise accumulate or lower train_batch"
    """What to change where a step does not fit into memory."""

    @abstractmethod
    def parts(self, step: int, count: int) -> tuple[Sequence[Any], int]:
        """The batch of a step in `count` parts, or more where memory is short, and how many tokens
        it has, without padding.

        A function of the seed, the step and the model alone, so that any run can be resumed.
        """

    @abstractmethod
    def on_device(self, part: Any) -> Any:
        """What `loss` needs of a part, on its way to the device; it is asked for ahead."""

    @abstractmethod
    def loss(self, network: nn.Module, part: Any) -> Tensor:
        """What a part, as `on_device` gave it, adds to the mean loss of the step, a scalar.

        It calls `network`, which is `model` replicated, once.
        """

    @abstractmethod
    def validate(self, stopped: Callable[[], bool]) -> Measured | None:
        """How good the model is on what it does not learn from; None where `stopped()` is true."""

    @abstractmethod
    def how_to_use(self, path: Path, it: str = "it") -> str:
        """The command that uses a checkpoint of this task, for people to copy, who call it `it`."""

    def reason_to_stop(self, step: int, measured: Any) -> UserError | None:
        """What `validate` measured that lets nothing come of the run; the error that ends it."""
        return None

    def weakness(self, best: Mapping[str, float], was_better_before: bool) -> str:
        """What the best validation says against the model, and what to change; empty if nothing.

        `was_better_before` tells that training on made it worse.
        """
        return ""

    def sample_replies(self) -> list[tuple[str, str]]:
        """Prompts and what the model replies, for people to read."""
        return []

    def state(self, completed: int) -> dict[str, Any]:
        """What `load_state` needs to find the place in the data behind step `completed`."""
        return {}

    def load_state(self, state: dict[str, Any], completed: int) -> bool:
        """Go on behind step `completed`; False where the data is another, which begins anew."""
        return True


@dataclass(frozen=True)
class LaunchedStep:
    """A step that the device was given, and may still be computing.

    read: waits for it, and gives the norm of its gradient before clipping and the loss of each part
    that this process computes.
    """

    number: int
    read: Callable[[], list[float]]
    lr: float
    tokens: int


class DivergedError(UserError):
    """The loss or the gradient is not finite."""


class Trainer:
    """A task's model, its optimizers, and the steps they have taken.

    Every random number of a step is a function of the seed and the step, so `state` holds no
    generator and a resumed run is the run that was not interrupted. Nor does the number of
    processes in `world` change it: all make the same batch, each computes its part of the gradient.
    """

    def __init__(self, config: Config, runtime: Runtime, task: Task, world: World = ALONE) -> None:
        self.config, self.runtime, self.task, self.world = config, runtime, task, world
        self.model = task.model
        self.root = Path(config.checkpoint_root)
        self.network = replicate(self.model, world)
        self.compiles = config.compile and can_compile(runtime.device)
        self.optimizers = make_optimizers(self.model, config)
        scaled = runtime.dtype == torch.float16
        self.scaler = torch.amp.GradScaler(runtime.device.type, enabled=scaled)
        self.steps_ahead = 1 if runtime.device.type == "cuda" else 0
        """Steps that a GPU is given before the result of an earlier one is read: it never waits."""
        self.holds_best = runtime.device.type == "cuda"
        """Whether a model that is the best so far waits in the host's memory for the next save: a
        GPU trains on to a better one in less time than writing it takes."""
        self._failure: UserError | None = None
        """Why it ends early, where nothing comes of it."""
        self._held: Callable[[], Path] | None = None
        """What writes it."""
        self._next: tuple[Sequence[Any], int] | None = None
        """The parts of the next step and its tokens, where they were made ahead."""
        self._diverged = torch.zeros((), dtype=torch.bool, device=runtime.device)
        """Set by the first step that is not finite; then no step changes anything any more."""
        self.most_overflows = MOST_OVERFLOWS if scaled else 1
        """So many steps in a row whose gradient is not finite end the run."""
        self._overflows = torch.zeros((), dtype=torch.int32, device=runtime.device)
        """How many it were last, on the device and, of the steps that are read, on the host."""
        self._overflows_read = 0
        self.most_steps = config.last_step(task.steps_per_epoch)
        """Where training ends where neither `max_minutes` nor `patience` ends it before."""
        self.schedule = Schedule(config, self.most_steps)
        self._timer = StepTimer() if config.max_minutes else None
        """Until the number of steps for `max_minutes` is chosen."""
        self.completed = 0
        """Steps taken."""
        self.seconds = 0.0
        """Of training, of resumed runs together; without validating and saving."""
        self.history: list[dict[str, float]] = []
        """The validations so far."""
        self._ready = world.size == 1 and not self.compiles

    @property
    def last_step(self) -> int:
        """Where training ends, unless it runs out of patience before."""
        return self.schedule.last_step

    # -- the loop -----------------------------------------------------------------------------

    def train(self, command: str) -> Path:
        """Take the steps that are left, and return the newest checkpoint.

        After Ctrl-C or SIGTERM it saves the state, says how to go on (`command` is what the user
        typed behind `python` or `torchrun`), and raises SystemExit: 130 or 143.
        """
        if self.world.is_first:
            self._check_disk()
        metrics = Metrics(self.config, self.completed, self.last_step, self.world.is_first)
        self.seconds = self.seconds or metrics.seconds
        try:
            with stop_on_signals() as stop:
                path = self._loop(metrics, stop)
        except DivergedError:
            self._save_before_divergence(metrics)
            raise
        except (torch.OutOfMemoryError, MemoryError) as error:
            reason = (str(error).splitlines() or ["the system has no more"])[0]
            raise UserError(
                f"out of memory at step {self.completed + 1}: {reason}",
                self.task.saves_memory,
            ) from None
        finally:
            self._rescue_held(metrics)
            metrics.close()
        if stop.requested():
            note(f"stopped at step {self.completed}, saved in {path}")
            note(f"go on with: {launch.launcher()} {command} resume_from=latest")
            note(f"or {self.task.how_to_use(path, 'the model as it is now')}")
            raise SystemExit(128 + stop.number)
        if self._failure:
            raise self._failure
        self._tell_the_end(path)
        return path

    def _tell_the_end(self, path: Path) -> None:
        """Why training ended early, and in one line each what speaks against the model."""
        best = self.best_checkpoint(path)
        if self.completed < self.last_step:
            patience = counted(self.config.patience, "validation")
            note(f"stopped at step {self.completed}: {patience} without a better one (patience)")
        most, minutes = self.most_steps, self.config.max_minutes
        if minutes and self.completed == self.last_step < most:
            enough = f"{minutes:g} minutes were enough for {self.last_step:,} of {most:,} steps"
            wanted = math.ceil(minutes * most / self.last_step)
            note(f"{enough}: for a better model give it about max_minutes={wanted}")
        if best != path:
            note(f"the best by validation is {best.name}")
        if 2 * self.schedule.warmup_steps > self.completed:
            rising = f"the learning rate was still rising for {self.schedule.warmup_steps:,}"
            advice = "lower warmup_steps (or set warmup: 0.1), or train longer (max_steps)"
            note(f"warning: {rising} of {counted(self.completed, 'step')}: {advice}")
        scores = self.best or {}
        if weakness := self.task.weakness(scores, scores.get("step") != self.completed):
            note(f"warning: {weakness}")

    def best_checkpoint(self, path: Path) -> Path:
        """The best by validation of the checkpoints that are kept; `path` is the newest."""
        return run_folder.best(run_folder.checkpoints(self.root)) if self.world.is_first else path

    def _loop(self, metrics: Metrics, stop: StopRequest) -> Path:
        config, task = self.config, self.task
        launched: deque[LaunchedStep] = deque()
        clock = Stopwatch()

        def finish(most_left: int = 0) -> None:
            while len(launched) > most_left:
                self._record(launched.popleft(), clock, metrics)

        while True:
            launched.append(self.launch())
            finish(most_left=self.steps_ahead)
            step = self.completed

            # Once in a while: validate. A checkpoint has the scores of its step.
            last = step >= self.last_step
            save = last or step % config.save_freq == 0
            figures: dict[str, float] = {}
            if last or (config.eval_freq and (save or step % config.eval_freq == 0)):
                finish()
                measured = task.validate(stop.requested)
                if measured is not None:
                    figures = measured.as_dict()
                    best = self._remember(figures)
                    if best and task.keeps_every_best:
                        save |= not self.holds_best
                        held = not save and self.world.is_first
                        self._held = self._checkpoint(figures, later=True) if held else None
                    last |= self.is_out_of_patience
                    self._failure = task.reason_to_stop(step, measured)
                    last |= self._failure is not None
                    line = f"{measured}{' (best)' if best else ''}"
                    replies = task.sample_replies() if self.world.is_first else []
                    metrics.validation(step, line, figures, replies)
                clock.restart()

            # Save, and stop where one of the processes was asked to.
            stopping = stop.agreed(self.world)
            if save or last or stopping:
                finish()
                self._save(figures, metrics)
                if last or stopping:
                    self.world.max(0)  # nobody leaves before it is saved
                    return run_folder.place(self.root, step)
                clock.restart()

    def _record(self, launched: LaunchedStep, clock: Stopwatch, metrics: Metrics) -> None:
        """Read a step's result, and report it."""
        result = self.finish(launched)
        seconds = clock.restart()
        self.seconds += seconds
        metrics.step(launched.number, result, seconds, self.seconds)
        if self._timer:
            self._choose_last_step(seconds, metrics)

    def _save_before_divergence(self, metrics: Metrics) -> None:
        """Keep what was learnt since the last checkpoint: it can go on with a lower rate."""
        step = self.completed
        path = run_folder.place(self.root, step)
        if self.world.is_first and step and not path.exists():
            self._save({}, metrics)
            metrics.say(f"saved as it was before step {step + 1}, for resume_from=latest: {path}")
        self.world.max(0)

    def _choose_last_step(self, seconds: float, metrics: Metrics) -> None:
        """Once enough steps are measured: how many fit into `max_minutes`, in all processes."""
        timer, minutes = self._timer, self.config.max_minutes
        assert timer and minutes
        timer.add(seconds)
        if self.world.max(not timer.is_done):
            return
        self._timer = None
        left = timer.steps_in(60 * minutes - self.seconds)
        fitting, most = self.completed + self.world.share(left), self.last_step
        self.schedule = Schedule(self.config, min(fitting, most))
        speed = f"max_minutes: {minutes:g}: a step takes {timer.seconds / timer.steps:.2f} s"
        chosen = f"training ends at step {self.last_step:,}"
        metrics.say(f"{speed}, so {chosen}{f' instead of {most:,}' if fitting < most else ''}")
        metrics.set_last_step(self.last_step)

    # -- a step -------------------------------------------------------------------------------

    def step(self) -> StepResult:
        """One optimizer step over `train_batch` rows or reviews, from `launch` to `finish`."""
        return self.finish(self.launch())

    def launch(self) -> LaunchedStep:
        """Give the device the next step; it goes on computing when this returns.

        A step whose loss or gradient is not finite changes nothing. In float16 an overflow is
        normal, and the next step goes on; else none changes anything until `finish` has told it.
        """
        if not self._ready:
            self._get_ready()
        seed_everything(self.config.seed, 3, self.completed, self.world.rank)
        lr = self.schedule.learning_rate(self.completed)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
        parts, tokens = self._next or self._own_parts()
        losses = []
        for number, part in enumerate(parts, start=1):
            last = number == len(parts)
            with nullcontext() if last else without_averaging(self.network):
                # Each part's share of the mean loss of the step, however it is split. What is
                # averaged over the processes are their shares, times their number.
                loss = self.task.loss(self.network, part)
                self.scaler.scale(loss * self.world.size).backward()
            losses.append(loss.detach())
        grad_norm = self._update(torch.stack(losses))
        self.completed += 1
        read = begin_to_read(torch.stack([grad_norm, *losses]))
        self._next = self._own_parts() if self.steps_ahead else None
        return LaunchedStep(self.completed, read, lr, tokens)

    def finish(self, launched: LaunchedStep) -> StepResult:
        """Wait for a step and read its result.

        Raises:
            UserError: the loss or the gradient was not finite. Model, optimizers and `completed`
                are as before that step.
        """
        grad_norm, *losses = launched.read()
        loss = self.world.sum(sum(losses))[0]
        overflows = 0 if math.isfinite(grad_norm) else self._overflows_read + 1
        self._overflows_read = overflows
        if not math.isfinite(loss) or overflows == self.most_overflows:
            self.completed = launched.number - 1
            self._next = None
            self._diverged.zero_()
            self._overflows.zero_()
            self._overflows_read = 0
            many = f", as in {overflows} steps in a row" if overflows > 1 else ""
            raise DivergedError(
                f"step {launched.number}: the loss is {loss}, the gradient norm {grad_norm}{many}",
                "lower lr, lengthen warmup_steps, or use dtype: float32",
            )
        return StepResult(loss, grad_norm, launched.lr, launched.tokens)

    def _own_parts(self) -> tuple[list[Any], int]:
        """What this process computes of the next step, on its way to the device."""
        count = self.config.accumulate * self.world.size
        parts, tokens = self.task.parts(self.completed, count)
        own = parts[self.world.rank :: self.world.size]
        return [self.task.on_device(part) for part in own], tokens

    def _get_ready(self) -> None:
        """Compile, and let DDP learn in which order gradients become ready, before the first step.

        In the step itself the sums of a resumed run would be in another order than those of the
        run that was not interrupted. Where the compiler fails, a note says so, and the run goes on
        without.
        """
        self._ready = True
        self._next = self._own_parts()
        part = self._next[0][0]
        if self.compiles:
            self.compiles = self._compile(part)
        if self.world.size > 1:
            self.task.loss(self.network, part).backward()
            self.model.zero_grad(set_to_none=True)

    def _compile(self, part: Any) -> bool:
        """Compile the blocks, to train and to validate; in all processes, or in none."""
        blocks = [module for module in self.model.modules() if isinstance(module, Block)]
        note("compile: before the first step, it takes a minute or so")
        began, problem = time.perf_counter(), ""
        compile_blocks(blocks)
        try:
            self.task.loss(self.model, part).backward()  # not through DDP, which would wait
            self.model.eval()
            with torch.no_grad():
                self.task.loss(self.model, part)
            graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
            if not graphs:
                problem = "torch.compile is switched off (TORCHDYNAMO_DISABLE?)"
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # no Triton, no Python headers, a fault of the compiler …
            problem = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        self.model.train()
        self.model.zero_grad(set_to_none=True)
        if self.world.max(bool(problem)):
            note(f"compile: it failed, running without: {problem or 'in another process'}")
            undo_compile(blocks)
            return False
        seconds = time.perf_counter() - began
        note(f"compile: compiled in {seconds:.0f} s, {counted(graphs, 'graph')}")
        return True

    def _update(self, losses: Tensor) -> Tensor:
        """Take the step where it is finite, and return the norm of the gradient before clipping."""
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        largest = self.config.grad_clip or math.inf
        grad_norm = nn.utils.clip_grad_norm_(self.model.parameters(), largest)
        skipped = ~grad_norm.isfinite()  # in all processes alike, unlike the losses
        self._overflows = (self._overflows + 1) * skipped
        self._diverged |= self._overflows >= self.most_overflows
        self._diverged |= self.world.any_on_device(~losses.sum().isfinite())
        skipped |= self._diverged
        for optimizer in self.optimizers:
            if isinstance(optimizer, torch.optim.AdamW) and skipped.device.type != "mps":
                # The fused kernels skip the step themselves, and nobody need wait to know it.
                optimizer.found_inf = skipped.float()  # type: ignore[attr-defined]
                optimizer.step()
            elif not skipped:
                optimizer.step()
        self.scaler.update()
        self.model.zero_grad(set_to_none=True)
        return grad_norm

    # -- validations and checkpoints ----------------------------------------------------------

    def _remember(self, figures: dict[str, float]) -> bool:
        """Add a validation to the history; whether it is the best of all."""
        epoch = round(self.completed / self.task.steps_per_epoch, 3)
        times = {"step": self.completed, "epoch": epoch, "seconds": round(self.seconds, 3)}
        self.history.append({**times, **figures})
        return self.best is self.history[-1]

    @property
    def best(self) -> dict[str, float] | None:
        """The validation with the lowest loss; the first of equals."""
        scored = [entry for entry in self.history if not math.isnan(entry["validation_loss"])]
        return min(scored or self.history, key=lambda entry: entry["validation_loss"], default=None)

    @property
    def is_out_of_patience(self) -> bool:
        """Whether the last `patience` validations brought none that is better."""
        patience, best = self.config.patience, self.best
        since = [entry for entry in self.history if best and entry["step"] > best["step"]]
        return 0 < patience <= len(since)

    @property
    def is_finished(self) -> bool:
        """Whether there is no step left to take."""
        return self.completed >= self.last_step or self.is_out_of_patience

    def tell_finished(self, path: Path) -> None:
        """Say that the run at `path` is finished, and what to raise to train on."""
        note(f"nothing to do: {path} is at step {self.completed} of {self.last_step}")
        limit = "max_steps"
        if self.completed < self.last_step:
            limit = "patience"
        elif self.last_step < self.most_steps:
            limit = "max_minutes, or type max_steps"
        note(f"to train on, raise {limit}")

    def _check_disk(self) -> None:
        """Refuse to begin where not even one checkpoint has room; say it where not all have."""
        saved = [p for p in self.model.parameters() if p.requires_grad or not self.task.base]
        size = sum(4 * p.numel() for p in saved)
        for optimizer in self.optimizers:
            numbers = 2 if isinstance(optimizer, torch.optim.AdamW) else 1  # Muon has one moment
            learnt = (p for group in optimizer.param_groups for p in group["params"])
            size += sum(4 * numbers * p.numel() for p in learnt if p.requires_grad)
        saves = math.ceil((self.last_step - self.completed) / self.config.save_freq)
        run_folder.check_room(self.root, size, saves, self.config.keep_last)

    def _save(self, figures: Mapping[str, float], metrics: Metrics) -> None:
        """Write the model as it is now, and before it the best one that is held."""
        if self.world.is_first:
            self._write_held(metrics)
            self._write(self._checkpoint(figures), metrics)

    def _write_held(self, metrics: Metrics) -> None:
        held, self._held = self._held, None
        if held:
            self._write(held, metrics)

    def _rescue_held(self, metrics: Metrics) -> None:
        """Write the best model where an error ends the run, unless it is a second Ctrl-C."""
        if isinstance(sys.exception(), KeyboardInterrupt):
            return
        try:
            self._write_held(metrics)
        except UserError as error:  # what has ended the run is to be told last
            note(str(error))

    def _write(self, write: Callable[[], Path], metrics: Metrics) -> None:
        metrics.record(self.completed, {}, checkpoint=write().name)
        run_folder.prune(self.root, self.config.keep_last)

    def _checkpoint(self, figures: Mapping[str, float], later: bool = False) -> Callable[[], Path]:
        """What writes the model with its scores; if `later`, as it is now."""
        base = self.task.base
        learnt = lora.learnt(self.model) if base else self.model.state_dict()
        contents: Any = (learnt, self.state())
        weights, state = on_host(contents) if later else contents
        history, seconds = list(self.history), round(self.seconds, 3)
        facts = {**figures, "seconds": seconds, "history": history}
        task, step = self.task, self.completed
        arguments = (step, self.config, task.tokenizer, weights, state, facts, task.labels)
        save = partial(adapter.save, base) if base else checkpoint.save
        return partial(save, self.root, *arguments)

    def state(self) -> dict[str, Any]:
        """What `load_state` needs to go on exactly; tensors and plain values only."""
        return {
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
            "completed": self.completed,
            "next_lr": self.schedule.learning_rate(self.completed),
            "chosen": None if self._timer else [self.config.max_minutes, self.last_step],
            **self.task.state(self.completed),
        }

    def load_state(self, state: dict[str, Any], manifest: Mapping[str, Any]) -> bool:
        """Go on from a checkpoint; False where the data is another, which begins anew.

        Raises:
            UserError: the state does not fit this model.
        """
        try:
            self._next = None
            optimizers = self._optimizer_states(state)
            if len(optimizers) != len(self.optimizers):
                used = "adamw" if len(optimizers) == 1 else "muon"
                raise UserError(
                    f"optimizer: {self.config.optimizer}, but the run was trained with {used}",
                    f"set optimizer={used} to go on, or begin a new run in another checkpoint_root "
                    "(its base_model may be this checkpoint)",
                )
            for optimizer, saved in zip(self.optimizers, optimizers, strict=True):
                optimizer.load_state_dict(saved)
            if state["scaler"] and self.scaler.is_enabled():
                self.scaler.load_state_dict(state["scaler"])
            self.completed = int(state["completed"])
            same_data = self.task.load_state(state, self.completed)
            self.seconds = float(manifest.get("seconds", 0.0))
            self.history = list(manifest.get("history", []))
            self._load_schedule(state)
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise UserError(
                f"the training state does not fit this model: {error}",
                "resume with the settings of the run that saved it",
            ) from None
        apply_settings(self.optimizers, self.config)
        return same_data

    def _load_schedule(self, state: dict[str, Any]) -> None:
        """Keep the number of steps chosen for `max_minutes`, and say where the rate has changed."""
        minutes, last_step = state.get("chosen") or (None, 0)
        if self._timer and minutes == self.config.max_minutes:
            self._timer = None
            self.schedule = Schedule(self.config, min(int(last_step), self.last_step))
        saved, now = state.get("next_lr"), self.schedule.learning_rate(self.completed)
        if (
            saved is not None
            and not self.is_finished
            and not math.isclose(saved, now, rel_tol=0.01)
        ):
            note(f"the learning rate goes on at {now:.3g}, where the saved run had {saved:.3g}")

    def _optimizer_states(self, state: dict[str, Any]) -> list[dict[str, Any]]:
        """A legacy .pth has the state of AdamW alone, by the names of the parameters."""
        if "moments" not in state:
            return list(state["optimizers"])
        names = [name for group in parameter_groups(self.model) for name, _ in group]
        moments = state["moments"]
        adamw = self.optimizers[-1].state_dict()
        adamw["state"] = {number: moments[name] for number, name in enumerate(names) if moments}
        return [adamw]
