"""Training: build the parts, load, fit. The loop reads forward, loss, backward, clip, step, EMA."""

from __future__ import annotations

import logging
import math
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from data.batch import Batch
from data.errors import UserError
from data.schedule import stage_starts
from data.script import Report
from engine import console
from engine.checkpoint import load_checkpoint
from engine.config import ExperimentConfig
from engine.distributed import Distributed
from engine.evaluate import evaluate
from engine.interrupt import StopSignal
from engine.metrics import GroundTruth, best_thresholds
from engine.multimodal import start_of_phase_1, start_of_phase_2
from engine.nonfinite import report_nonfinite
from engine.optim import set_learning_rates, step_seed
from engine.pictures import prediction_pictures, write_prediction_sheets
from engine.results import RESULTS_NAME, tile_facts, write_results
from engine.resume import Position, decide, restore
from engine.run import Run, build_run, rehearse, save
from engine.step import Step, batch_losses, window_shares, windows
from engine.suppression import add_suppression
from models.weights import load_state_dict_strict
from texts import Language, texts_of

log = logging.getLogger(__name__)


def train_as_asked(
    asked: Namespace, config: ExperimentConfig, overrides: Sequence[str], dist: Distributed, report: Report, phase: int
) -> None:
    """Train as the options of `training_arguments` ask; with `--dry-run` refuse what that would refuse.

    Raises:
        UserError: Anything wrong with the input; nothing has been written then.
        SystemExit: See `train`.
    """
    resume = asked.resume or config.resume
    if phase == 1:
        start = start_of_phase_1(config, resume)
    else:
        start = start_of_phase_2(config, resume, asked.config, asked.data)
    # A resumed run goes on where its checkpoint is, unless the command line names a folder.
    named = any(override.partition("=")[0].strip() == "output_dir" for override in overrides)
    folder = config.output_dir if start.resume is None or named else start.resume.parent
    if asked.dry_run:
        run = rehearse(config, dist, folder, **vars(start), lang=asked.lang)
        if run is not None and start.resume is not None:
            console.say_resumed(run, start.resume)
        return
    results = folder / RESULTS_NAME
    report.wrote(folder=folder, best=folder / "best.pth", last=folder / "last.pth", results=results)
    train(config, dist, folder, **vars(start), lang=asked.lang, verbose=asked.verbose)
    report.take(results, "metrics")


def train(
    config: ExperimentConfig,
    dist: Distributed,
    folder: Path,
    *,
    resume: Path | None = None,
    tuning: Path | None = None,
    text_cache: Path | None = None,
    lang: Language = "en",
    verbose: bool = False,
) -> None:
    """Train one experiment and leave its run folder complete.

    Args:
        folder: Run folder; an earlier run in it is moved aside unless it is the one that is resumed.
        resume: Checkpoint to go on from, exactly; `tuning`: checkpoint or weights to start a new run from.
        text_cache: Folder in which several runs share their texts' vectors; None: the run folder alone.
        verbose: List every derived value.

    Raises:
        UserError: Anything wrong with the input; nothing has been written then.
        SystemExit: SIGINT (130), SIGTERM (143) or SIGHUP (129), after saving `last.pth`.
    """
    with StopSignal(texts_of(lang, "training")) as stop:
        with stop.at_once():
            run = build_run(config, dist, folder, resume=resume, tuning=tuning, text_cache=text_cache, lang=lang)
        console.say_derived(run.config, run.text, verbose=verbose)
        console.say_start(run, resume=resume, tuning=tuning)
        if resume is not None and resume.resolve().parent != folder.resolve():
            log.warning(
                "resumed in another folder, %s: best.pth and best_stg1.pth of the run so far stay in %s, and the rest "
                "starts without them; without --output-dir, -r %s goes on in place",
                *(folder, resume.parent, resume),
            )
        try:
            fit(run, stop)
        except SystemExit:
            console.say_stopped(run)
            raise
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise out_of_memory(run.config, error) from error
        finally:
            run.close()


def fit(run: Run, stop: StopSignal) -> None:
    """All epochs: train, evaluate, choose, save; what only stage 2 needs goes at the end."""
    trains = not run.is_over
    while not run.is_over:
        epoch = run.position.epoch
        if epoch == run.stop_epoch and run.position.batch_in_epoch == 0:
            restart_from_stage_1(run)
        train_one_epoch(run, epoch, stop)
        save(run, "last.pth")
        if _evaluates(run, epoch):
            with stop.at_once():
                judge_epoch(run, epoch)
        run.position = run.position.but(last_epoch=epoch, batch_in_epoch=0)
        save(run, "last.pth")
        if stop.requested(run.dist):
            raise stop.exit()
        if run.is_over and epoch + 1 < run.config.epoches:
            console.say_early_stop(run)
    if run.dist.is_main:
        with suppress(OSError):  # it is only larger than it need be
            (run.folder / "best_stg1.pth").unlink(missing_ok=True)
        if trains:
            with stop.at_once():
                _try_suppression(run)
    console.say_end(run)


def _try_suppression(run: Run) -> None:
    """Leave in results.json which repeats prediction is to suppress."""
    log.info("%s", run.text["suppression"])
    try:
        add_suppression(run.folder)
    except UserError as error:  # evaluate_deimv2.py measures it, too
        log.warning("%s", error)


def train_one_epoch(run: Run, epoch: int, stop: StopSignal) -> None:
    """Train the rest of one epoch from `run.position` on.

    Raises:
        SystemExit: A stop signal came; `last.pth` holds the position in the epoch.
        UserError: Too many steps in a row had a loss that is not finite; the weights are as before them.
    """
    run.wrapped.train()
    statistics = BatchNormStatistics(run.model)
    run.train_loader.set_epoch(epoch, first_batch=run.position.batch_in_epoch)
    run.monitor.start_epoch(epoch, run.position.batch_in_epoch // run.config.micro_batches)
    for window, wait_seconds in timed(windows(run.train_loader, run.config.micro_batches)):
        started = time.perf_counter()
        if _shows_images(run.config, run.position):
            run.monitor.training_images(window[0], step=run.position.step)
        step = train_step(run, epoch, window, statistics, stop)
        run.position = run.position.but(
            step=run.position.step + 1,
            batch_in_epoch=run.position.batch_in_epoch + len(window),
            nonfinite_in_a_row=run.position.nonfinite_in_a_row + 1 if step.counts_as_nonfinite else 0,
            train_seconds=run.position.train_seconds + wait_seconds + time.perf_counter() - started,
        )
        if not step.update_finite:
            report_nonfinite(run, epoch, window, step)
        images = sum(len(batch.targets) for batch in window) * run.dist.world_size
        about = {"epoch": epoch, "step": run.position.step, "images": images}
        run.monitor.step(step, **about, wait_seconds=wait_seconds, optimizer=run.optimizer)
        if step.stopping:
            run.monitor.end_epoch(epoch=epoch, step=run.position.step)
            save(run, "last.pth")
            raise stop.exit()
    run.monitor.end_epoch(epoch=epoch, step=run.position.step)


def train_step(run: Run, epoch: int, window: list[Batch], statistics: BatchNormStatistics, stop: StopSignal) -> Step:
    """One optimiser step: forward, loss, backward, clip, step, EMA."""
    step = run.position.step
    torch.manual_seed(step_seed(run.config.seed, step, run.dist.rank))
    set_learning_rates(run.optimizer, run.schedule.ratio_before(step))
    run.optimizer.zero_grad(set_to_none=True)
    statistics.keep()
    losses: dict[str, Tensor] = {}
    shares = window_shares(run.config, run.dist, window)
    for number, (batch, share) in enumerate(zip(window, shares, strict=True), start=1):
        batch = batch.to(run.dist.device)
        # Processes exchange gradients once a window, with its last micro-batch.
        parts = run.wrapped if isinstance(run.wrapped, DistributedDataParallel) and number < len(window) else None
        with nullcontext() if parts is None else parts.no_sync():
            terms = batch_losses(
                run.wrapped, run.criterion, batch, run.config, epoch=epoch, share=share, amp_dtype=run.amp_dtype
            )
            run.scaler.scale(torch.stack(list(terms.values())).sum()).backward()
        for key, term in terms.items():
            losses[key] = losses[key] + term.detach() if key in losses else term.detach()
    run.scaler.unscale_(run.optimizer)
    parameters = [p for p in run.model.parameters() if p.requires_grad]
    grad_norm = torch.nn.utils.clip_grad_norm_(parameters, run.config.clip_max_norm or math.inf)
    loss_finite, update_finite, stopping = agree(run, losses, grad_norm, stop)
    if update_finite:
        run.optimizer.step()
        if run.ema is not None:
            run.ema.update(run.model)
    else:
        statistics.restore()
    run.scaler.update()
    return Step(losses, grad_norm, loss_finite, update_finite, stopping, run.scaler.is_enabled())


def timed(items: Iterable[list[Batch]]) -> Iterator[tuple[list[Batch], float]]:
    """Each item with the seconds spent waiting for it."""
    iterator = iter(items)
    while True:
        started = time.perf_counter()
        item = next(iterator, None)
        if item is None:
            return
        yield item, time.perf_counter() - started


def agree(run: Run, sums: dict[str, Tensor], grad_norm: Tensor, stop: StopSignal) -> tuple[bool, bool, bool]:
    """What all processes do after this step: (loss finite, update usable, stop now).

    One host synchronisation, the only one of the loop itself (the matcher has the other).
    """
    loss_bad = ~torch.isfinite(torch.stack(list(sums.values())).sum())
    update_bad = loss_bad | ~torch.isfinite(grad_norm)
    stopping = torch.full_like(grad_norm, float(stop.received))
    flags = run.dist.sum_(torch.stack([loss_bad.to(stopping.dtype), update_bad.to(stopping.dtype), stopping]))
    loss_bad_anywhere, update_bad_anywhere, stop_anywhere = (value > 0 for value in flags.tolist())
    return not loss_bad_anywhere, not update_bad_anywhere, stop_anywhere


class BatchNormStatistics:
    """Keeps the running statistics of a step's start: a skipped step must not leave NaN in them."""

    def __init__(self, model: nn.Module) -> None:
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self._live = [b for norm in norms for b in norm.buffers()]
        self._kept = [b.clone() for b in self._live]

    @torch.no_grad()
    def keep(self) -> None:
        """Remember the present values."""
        if self._live:
            torch._foreach_copy_(self._kept, self._live)

    @torch.no_grad()
    def restore(self) -> None:
        """Go back to the remembered values."""
        if self._live:
            torch._foreach_copy_(self._live, self._kept)


def judge_epoch(run: Run, epoch: int) -> None:
    """Evaluate, keep the best checkpoints, restart stage 2 where it failed to improve."""
    started, split = time.perf_counter(), run.data.splits["val"]
    result = evaluate(run.detector, run.val_loader, split)
    seconds = time.perf_counter() - started
    ap = result.metrics["AP"]
    decision = decide(run.position.selection, ap=0.0 if ap is None else ap, epoch=epoch, stop_epoch=run.stop_epoch)
    # Before the checkpoints: a run that is killed among them evaluates again and replaces the record.
    run.monitor.evaluation(result, epoch=epoch, step=run.position.step, seconds=seconds)
    run.position = run.position.but(selection=decision.selection)
    console.say_epoch(run, epoch, result.metrics)
    if decision.write_stage1:
        save(run, "best_stg1.pth", finished_epoch=epoch)
    if decision.write_best:
        save(run, "best.pth", finished_epoch=epoch)
    shown = split, result.predictions, run.data.classes
    if run.dist.is_main and decision.write_best:
        truth = GroundTruth.of(split)
        content = result.to_json() | {"thresholds": best_thresholds(truth, result.detections)}
        write_results(run.folder, truth, result.detections, content | run_facts(run, epoch))
        write_prediction_sheets(run.folder, *shown, run.text.language)
    if run.dist.is_main and (decision.write_best or epoch + 1 == run.config.epoches):
        pictures = prediction_pictures(*shown, count=8, lang=run.text.language)
        run.monitor.prediction_images(pictures, step=run.position.step)
    if decision.restart:
        restart_from_stage_1(run)


def restart_from_stage_1(run: Run) -> None:
    """Stage 2 starts from the best of stage 1, with a lower EMA decay after each failure; the epoch goes on."""
    path = run.folder / "best_stg1.pth"
    run.dist.barrier()  # rank 0 may still be writing it
    if not path.is_file():
        log.info("%s", run.text["stage_2_as_it_is"])
        return
    checkpoint = load_checkpoint(path)
    load_state_dict_strict(run.model, checkpoint["model"], source=path)
    restore(
        checkpoint, path, optimizer=run.optimizer, ema=run.ema, scaler=run.scaler, train_loader=run.train_loader
    )  # but for the position: the counters go on
    restarts = run.position.selection.restarts
    if run.ema is not None:
        ceiling = run.config.train_dataloader.collate_fn.ema_restart_decay
        run.ema.decay = max(min(ceiling, run.config.ema.decay) - 1e-4 * restarts, 0.0)
    log.info("%s", run.text("stage_2", count=restarts))


def run_facts(run: Run, epoch: int) -> dict[str, Any]:
    """What results.json says of the run beside the metrics."""
    return {
        "epoch": epoch + 1,
        "epochs": run.config.epoches,
        "seed": run.config.seed,
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "train_seconds": run.position.train_seconds,
        "checkpoint": "best.pth",
        "tiles": tile_facts(run.config.tiles),
    }


def is_out_of_memory(error: RuntimeError) -> bool:
    """A GPU's error has its own type; the CPU allocator only says it in words."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def out_of_memory(config: ExperimentConfig, error: BaseException) -> UserError:
    """The remedies, cheapest first."""
    tried = (config.origin("accumulation_steps") or "").startswith("derived")
    on_a_gpu = isinstance(error, torch.OutOfMemoryError)
    steps = "auto" if on_a_gpu and not tried else config.micro_batches * 2
    remedies = [
        "--use-amp, if it is not on",
        f"-u accumulation_steps={steps} (smaller micro-batches, same total_batch_size)",
        "-u gradient_checkpointing=True (slower: the ViT is computed twice)",
        "-u train_dataloader.collate_fn.base_size_repeat=null (no batches larger than eval_spatial_size)",
        "a smaller image size or a smaller model (configs/deimv2/deimv2_dinov3_s_coco.yml is the smallest)",
    ]
    if config.Baseline is not None:
        remedies[2] = "-u Baseline.fpn_channels=128 Baseline.roi_batch_per_image=128 (narrower, fewer proposals)"
        remedies[4] = "a smaller image size"
    return UserError(f"Out of memory: {str(error).splitlines()[0]}. Try, in this order:", remedies)


def _evaluates(run: Run, epoch: int) -> bool:
    """Every `eval_interval_epochs` epochs, and at the end of each stage."""
    done = epoch + 1
    return done % run.config.eval_interval_epochs == 0 or done in (run.stop_epoch, run.config.epoches)


def _shows_images(config: ExperimentConfig, position: Position) -> bool:
    """TensorBoard sees the first batch of every stage of augmentation."""
    section = config.train_dataloader
    starts = stage_starts(section.dataset.transforms, section.collate_fn, config.epoches)
    return position.batch_in_epoch == 0 and position.epoch in starts
