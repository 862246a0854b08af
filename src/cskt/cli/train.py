"""`cskt train`: a recipe, overrides, a run folder with weights and a report."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cskt.cli.parsing import (
    Parser,
    add_config_flags,
    command_line,
    config_from_flags,
    existing_folder,
    flag_overrides,
    flags_roots,
    seeds_of,
)
from cskt.config import RunConfig, as_trained, load_config
from cskt.config.file_names import CONFIG, LAST_EPOCH
from cskt.errors import CsktError


def main(argv: Sequence[str]) -> int:
    """See `cskt train --help`."""
    parser = Parser(
        prog="cskt train",
        usage="cskt train [--config RECIPE] [--output FOLDER] [--init-from RUN] [--seeds 1,2,3 | --resume RUN]"
        " [--KEY VALUE ...]",
        description="Train a recipe. Every config key below is a flag that changes it.",
    )
    parser.add_argument("--output", type=Path, help="run folder (default: <output_dir>/<dataset>/<time>_<name>)")
    parser.add_argument("--resume", metavar="RUN", help="continue the run in this folder from its last.pt, past a stop")
    seeds = "one run per seed, in <output>/seed-<n> (default: <output_dir>/<dataset>/<name>); finished runs are skipped"
    parser.add_argument("--seeds", metavar="1,2,3", help=f"{seeds}, others continued")
    add_config_flags(parser)
    flags = parser.parse(argv)
    if flags.seeds is not None:
        if flags.resume is not None:
            raise CsktError("--seeds continues unfinished runs by itself; leave out --resume")
        return run_seeds(config_from_flags(flags), seeds_of(flags.seeds), flags.output)
    if flags.resume is None:
        return run(config_from_flags(flags), flags.output)
    if flags.config is not None or flags.output is not None:
        raise CsktError("--resume continues with the run's own config in its folder; leave out --config and --output")
    folder = existing_folder(flags.resume)
    # A stop was meant for the earlier session.
    overrides = {"loop.stop_after_epochs": None} | flag_overrides(flags)
    if len(roots := flags_roots(flags)) > 1:
        overrides |= _moved_mix(folder, roots)
    return run(as_trained(load_config(folder / CONFIG, overrides, fit=False)), folder, resume=True)


def _moved_mix(folder: Path, roots: Sequence[str]) -> dict[str, Any]:
    """Return the overrides that state new places of the data sets of a run's mix, in the order of its config."""
    data = load_config(folder / CONFIG, fit=False).data
    if len(roots) != 1 + len(data.mix):
        known = ", ".join([data.root, *(other.root for other in data.mix)])
        raise CsktError(
            f"--root: {len(roots)} folders for {folder}, which was trained on {1 + len(data.mix)}; give the new place"
            f" of each, in the order {known}"
        )
    moved = zip(data.mix, roots[1:], strict=True)
    return {"data.mix": [dataclasses.asdict(other) | {"root": root} for other, root in moved]}


def run(config: RunConfig, folder: Path | None = None, *, resume: bool = False, refuse_overlaps: bool = True) -> int:
    """Train, write the report, and print where everything is; arguments as for `cskt.train`."""
    from cskt.cli.run_report import write_run_report  # noqa: PLC0415  (torch and matplotlib take a second to import)
    from cskt.training.events import last_event, read_events  # noqa: PLC0415
    from cskt.training.launch import check_restart_supported, num_restarts, read_ranks  # noqa: PLC0415
    from cskt.training.loop import Resume, train  # noqa: PLC0415
    from cskt.training.run_folder import RunFolder  # noqa: PLC0415

    check_restart_supported(folder)
    choice = Resume.REQUIRED if resume else Resume.IF_POSSIBLE if num_restarts() else Resume.NEVER
    result = train(config, folder, resume=choice, refuse_overlaps=refuse_overlaps)
    if not read_ranks().is_main_process:
        return 0
    report = write_run_report(result.folder)
    fitted = RunFolder(result.folder).config  # to the size of the data, which may have moved since the run began
    data = dataclasses.replace(fitted.data, root=config.data.root, mix=config.data.mix)
    config = dataclasses.replace(fitted, data=data)
    if result.already_finished:
        print(f"already finished ({_epochs(config, result.num_epochs_done)}); nothing was trained")
    if result.stopped:
        print(f"ended after {_epochs(config, result.num_epochs_done)}: {result.stopped}")
    elif not result.already_finished and result.num_epochs_done < config.loop.num_epochs and config.is_trainable:
        again = command_line("train", "--resume", result.folder)
        done = _epochs(config, result.num_epochs_done)
        print(f"stopped after {done}, at loop.stop_after_epochs; to continue: {again}")
    print(f"best: epoch {result.best_epoch}, R1 {100 * result.best_r1:.2f}, selected on {config.data.select_on}")
    if "last_r1" in (end := last_event(read_events(result.folder), "end")):
        print(f"last: epoch {end['last_epoch']}, R1 {100 * end['last_r1']:.2f}, in {LAST_EPOCH}")
    print(f"run: {result.folder}\nreport: {report}")
    print("next: " + "\n      ".join(next_commands(result.folder, config)))
    if result.already_finished and config.is_trainable:
        start = command_line("train", "--config", result.folder / CONFIG, "--init-from", result.folder)
        print(f"a new run from these weights: {start}")
    return 0


def next_commands(folder: Path, config: RunConfig) -> list[str]:
    """Return the commands that say how good a run is: alone, or beside the run that it started from."""
    from cskt.cli.run_report import evaluate_command  # noqa: PLC0415  (torch takes a second to import)
    from cskt.data.datasets import dataset_key  # noqa: PLC0415
    from cskt.data.mixing import sources_of  # noqa: PLC0415
    from cskt.embed.model_paths import run_config  # noqa: PLC0415

    start = None if config.init_from is None else run_config(Path(config.init_from))
    if config.init_from is None or start is None:
        return [evaluate_command(folder, config)]
    # Marks have no test split: the data of the run before them has one.
    before = (start.data.dataset, start.data.root)
    own = [(str(source.dataset), source.root) for source in sources_of(config.data)]
    name, root = next((place for place in (*own, before) if _has_test(*place)), (before[0], "DIR"))
    data = ("--dataset", name, "--root", root)
    return [
        command_line("evaluate", config.init_from, *data),
        command_line("evaluate", folder, *data),
        command_line("compare", config.init_from, folder, "--dataset", dataset_key(name), "--split", "test"),
        f"if it is better, use it in a gallery: {command_line('reindex', 'GALLERY', '--model', folder)}",
    ]


def _has_test(name: str, root: str) -> bool:
    from cskt.data.datasets import read_dataset  # noqa: PLC0415  (imports torch)

    try:
        return "test" in read_dataset(name, Path(root))
    except CsktError:
        return False


def _epochs(config: RunConfig, num_done: int) -> str:
    if not config.is_trainable:
        return "this recipe trains nothing"
    return f"{num_done} of {config.loop.num_epochs} epochs"


def run_seeds(config: RunConfig, seeds: Sequence[int], folder: Path | None = None) -> int:
    """Train the seeds that are not finished; return 1 while another process trains one of them."""
    from cskt.cli.run_report import evaluate_command, write_run_report  # noqa: PLC0415  (imports torch, matplotlib)
    from cskt.evaluation.statistics import mean_and_deviation  # noqa: PLC0415
    from cskt.training.launch import check_single_process  # noqa: PLC0415
    from cskt.training.run_folder import RunFolder, claimed  # noqa: PLC0415
    from cskt.training.series import seed_folder, train_or_resume  # noqa: PLC0415

    check_single_process("--seeds")
    parent = folder or Path(config.output_dir) / config.data.dataset / config.name
    results, selected_on = [], config.data.select_on
    for seed in seeds:
        place = seed_folder(parent, seed)
        with claimed(place) as mine:
            if not mine:
                print(f"seed {seed}: another process is training it")
                continue
            results.append(train_or_resume(dataclasses.replace(config, seed=seed), place))
            write_run_report(place)
            selected_on = RunFolder(place).config.data.select_on
        print(f"seed {seed}: epoch {results[-1].best_epoch}, R1 {100 * results[-1].best_r1:.2f} ({place})")
    if results:
        r1 = mean_and_deviation([result.best_r1 for result in results])
        spread = "" if r1.deviation is None else f" ± {100 * r1.deviation:.2f} (standard deviation)"
        print(f"mean of {len(results)} seeds: R1 {100 * r1.mean:.2f}{spread}, selected on {selected_on}")
        print("next: " + evaluate_command(parent, config))
    return 0 if len(results) == len(seeds) else 1
