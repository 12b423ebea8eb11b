"""Train DEIMv2 (or a baseline) from a config: `python train_deimv2.py -c configs/quickstart.yml`."""

import sys

from data.script import Report, leaving_quietly, run_script

with leaving_quietly():
    from engine.cli import ending, resolve_device, setup_logging, training_arguments, training_overrides


def main(report: Report, description: str | None = __doc__, *, phase: int = 1) -> int:
    """The script; phase 2 trains with class texts."""
    arguments = training_arguments(description)
    with leaving_quietly():
        from analysis.evaluate import evaluate_checkpoint, format_results
        from engine.config import load_config
        from engine.config_reference import explain
        from engine.console import planned
        from engine.derived_values import LENGTH_KEYS
        from engine.distributed import cleanup, init_distributed
        from engine.nonfinite import replay
        from engine.run import planned_config
        from engine.train import train_as_asked
    if arguments.explain is None:
        setup_logging()
    say, overrides = sys.stdout.write, training_overrides(arguments)
    if arguments.explain is not None:
        config = load_config(arguments.config, overrides)
        say(f"{explain(arguments.explain, planned_config(config) if arguments.explain in LENGTH_KEYS else config)}\n")
        return 0
    if arguments.replay:
        say(f"{replay(arguments.replay, resolve_device(arguments.device))}\n")
        return 0
    config = load_config(arguments.config, overrides)
    if arguments.dry_run:
        say(planned(config, arguments.lang, verbose=arguments.verbose))
        if arguments.test_only:
            return 0  # no training would start
    dist = init_distributed(arguments.device or config.device)
    setup_logging(is_main=dist.is_main)
    try:
        if arguments.test_only:
            evaluation = evaluate_checkpoint(arguments.resume, dist, config_path=arguments.config, overrides=overrides)
            if evaluation.analysis is not None:
                numbers = format_results(evaluation.analysis.results, arguments.lang)
                say(f"{numbers}\n\n{ending(arguments.lang, evaluation.folder)}")
                report.wrote(folder=evaluation.folder, results=evaluation.folder / "results.json")
                report.take(evaluation.folder / "results.json", "metrics")
            return 0
        train_as_asked(arguments, config, overrides, dist, report, phase)
    finally:
        cleanup()
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
