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
        from engine.console import dry_run
        from engine.derived_values import LENGTH_KEYS
        from engine.distributed import cleanup, init_distributed
        from engine.multimodal import start_of_phase_1, start_of_phase_2
        from engine.nonfinite import replay
        from engine.run import planned_config
        from engine.train import train
    if not arguments.explain:
        setup_logging()
    say, overrides = sys.stdout.write, training_overrides(arguments)
    if arguments.explain:
        config = load_config(arguments.config, overrides)
        say(f"{explain(arguments.explain, planned_config(config) if arguments.explain in LENGTH_KEYS else config)}\n")
        return 0
    if arguments.replay:
        say(f"{replay(arguments.replay, resolve_device(arguments.device))}\n")
        return 0
    config = load_config(arguments.config, overrides)
    if arguments.dry_run:
        say(dry_run(config, arguments.lang, verbose=arguments.verbose))
        return 0
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
        resume = arguments.resume or config.resume
        if phase == 1:
            start = start_of_phase_1(config, resume)
        else:
            start = start_of_phase_2(config, resume, arguments.config, arguments.data)
        # A resumed run goes on where its checkpoint is, unless the command line names a folder.
        named = any(override.partition("=")[0].strip() == "output_dir" for override in overrides)
        folder = config.output_dir if start.resume is None or named else start.resume.parent
        results = folder / "results.json"
        report.wrote(folder=folder, best=folder / "best.pth", last=folder / "last.pth", results=results)
        train(config, dist, folder, **vars(start), lang=arguments.lang, verbose=arguments.verbose)
        report.take(results, "metrics")
    finally:
        cleanup()
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
