"""`cskt train`: a recipe, overrides, a run folder with weights and a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cskt.app.next_steps import command_line
from cskt.app.parsing import Parser, add_config_flags, config_from_flags, existing_folder, flag_overrides
from cskt.config import RunConfig, load_config


def main(argv: Sequence[str]) -> int:
    """See `cskt train --help`."""
    parser = Parser(
        prog="cskt train",
        usage="cskt train [--config RECIPE] [--output FOLDER] [--resume RUN] [--KEY VALUE ...]",
        description="Train a recipe. Every config key below is a flag that is laid over it.",
    )
    parser.add_argument("--output", type=Path, help="run folder (default: <output_dir>/<dataset>/<time>_<name>)")
    parser.add_argument("--resume", metavar="RUN", help="go on with the run in this folder from its last.pt")
    add_config_flags(parser)
    flags = parser.parse(argv)
    if flags.resume is None:
        return run(config_from_flags(flags), flags.output)
    if flags.config is not None or flags.output is not None:
        raise ValueError("--resume goes on with the run's own config in its folder; leave out --config and --output")
    from cskt.train.run_folder import CONFIG  # noqa: PLC0415  (--help should not wait for torch)

    folder = existing_folder(flags.resume)
    return run(load_config(folder / CONFIG, flag_overrides(flags)), folder, resume=True)


def run(config: RunConfig, folder: Path | None = None, *, resume: bool = False) -> int:
    """Train, write the report, and say where everything is."""
    from cskt.app.run_report import write_run_report  # noqa: PLC0415  (torch and matplotlib take a second to import)
    from cskt.train.engine import train  # noqa: PLC0415

    result = train(config, folder, resume=resume)
    report = write_run_report(result.folder)
    print(f"best: epoch {result.best_epoch}, R1 {100 * result.best_r1:.2f}, selected on {config.data.select_on}")
    print(f"run: {result.folder}\nreport: {report}")
    print("next: " + command_line("evaluate", result.folder, "--root", config.data.root))
    return 0
