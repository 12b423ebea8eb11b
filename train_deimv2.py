"""Train DEIMv2 (or a baseline) from a config: `python train_deimv2.py -c configs/quickstart.yml`."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from data.signals import leaving_quietly

with leaving_quietly():
    import yaml

    from analysis.evaluate import evaluate_checkpoint, format_results
    from engine.cli import (
        add_amp_argument,
        add_config_argument,
        add_device_argument,
        add_overrides_argument,
        resolve_device,
        run_script,
        setup_logging,
    )
    from engine.config import ExperimentConfig, config_to_dict, load_config
    from engine.config_reference import explain
    from engine.derived_values import LENGTH_KEYS
    from engine.distributed import cleanup, init_distributed
    from engine.multimodal import Start
    from engine.nonfinite import replay
    from engine.run import planned_config
    from engine.train import train
    from engine.yaml_dialect import as_override


def parse_arguments(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    add_config_argument(parser, required=False, help_text="YAML config, e.g. configs/neu_det.yml")
    add_overrides_argument(parser)
    add_device_argument(parser)
    add_amp_argument(parser, "mixed precision on a GPU (default: the config's use_amp)")
    parser.add_argument("--seed", type=int, help="seed of weights, order and augmentation (default: the config's, 0)")
    parser.add_argument("-r", "--resume", type=Path, metavar="CKPT", help="go on exactly from this checkpoint")
    parser.add_argument("-t", "--tuning", type=Path, metavar="CKPT", help="start a new run from these weights")
    parser.add_argument(
        "--output-dir", type=Path, metavar="DIR", help="run folder (default: the config's; of -r: the checkpoint's)"
    )
    parser.add_argument("--test-only", action="store_true", help="evaluate -r CKPT on the validation split and stop")
    parser.add_argument(
        "--replay", type=Path, metavar="FILE", help="repeat a run's nonfinite_step.pt, say where it begins, and stop"
    )
    parser.add_argument("--explain", metavar="KEY", help="say what a key means, its value and who stated it, and stop")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config and stop")
    arguments = parser.parse_args()
    if not arguments.config and not arguments.replay:
        parser.error("the following arguments are required: -c/--config")
    if arguments.resume and arguments.tuning:
        parser.error("-r resumes a run, -t starts a new one from weights: give one of them")
    if arguments.test_only and not arguments.resume:
        parser.error("--test-only needs the checkpoint to evaluate: -r CKPT")
    return arguments


def resume_or_tune(config: ExperimentConfig, checkpoint: Path | None) -> Start:
    """-r goes on from its checkpoint."""
    return Start(tuning=config.tuning) if checkpoint is None else Start(resume=checkpoint)


def run_folder(config: ExperimentConfig, start: Start, overrides: Sequence[str]) -> Path:
    """A resumed run goes on where its checkpoint is, unless the command line names a folder."""
    if start.resume is None or any(override.partition("=")[0].strip() == "output_dir" for override in overrides):
        return config.output_dir
    return start.resume.parent


def main(
    description: str | None = __doc__,
    choose_start: Callable[[ExperimentConfig, Path | None], Start] = resume_or_tune,
) -> int:
    """The script; `choose_start` says what a run begins with, given -r's checkpoint if there is one."""
    arguments = parse_arguments(description)
    overrides = list(arguments.update)
    if arguments.use_amp is not None:
        overrides.append(f"use_amp={arguments.use_amp}")
    if arguments.seed is not None:
        overrides.append(f"seed={arguments.seed}")
    if arguments.output_dir is not None:
        overrides.append(as_override("output_dir", arguments.output_dir.as_posix()))
    if arguments.tuning is not None:
        overrides.append(as_override("tuning", arguments.tuning.as_posix()))
    if arguments.explain:
        config = load_config(arguments.config, overrides)
        planned = planned_config(config) if arguments.explain in LENGTH_KEYS else config
        sys.stdout.write(f"{explain(arguments.explain, planned)}\n")
        return 0
    setup_logging()
    if arguments.replay:
        sys.stdout.write(f"{replay(arguments.replay, resolve_device(arguments.device))}\n")
        return 0
    config = load_config(arguments.config, overrides)
    if arguments.dry_run:
        sys.stdout.write(yaml.safe_dump(config_to_dict(planned_config(config)), sort_keys=False, allow_unicode=True))
        return 0
    dist = init_distributed(arguments.device or config.device)
    setup_logging(is_main=dist.is_main)
    try:
        if arguments.test_only:
            evaluation = evaluate_checkpoint(arguments.resume, dist, config_path=arguments.config, overrides=overrides)
            if evaluation.analysis is not None:
                table = format_results(evaluation.analysis.results)
                sys.stdout.write(f"{table}\n\nWritten to {evaluation.folder}\n")
        else:
            start = choose_start(config, arguments.resume or config.resume)
            train(config, dist, run_folder(config, start, overrides), resume=start.resume, tuning=start.tuning)
    finally:
        cleanup()
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
