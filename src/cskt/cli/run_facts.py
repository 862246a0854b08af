"""What a model's own files say of it: size, training, weights, selection."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from cskt.embed.model_paths import run_config
from cskt.evaluation.results import Facts
from cskt.model.io.cache import sha256_of
from cskt.model.io.released.reader import WEIGHT_FILES
from cskt.training.run_folder import BEST, CONFIG, first_event, last_event, read_events


def is_run(model: Path) -> bool:
    """Whether a folder is one of our runs, which keeps its results in itself."""
    return (model / CONFIG).is_file()


def facts_of(model: Path) -> Facts:
    """What is known of a model before it is evaluated.

    Plain CLIP weights train nothing and need no file beside themselves; of a released folder and of a run's weight file
    nobody knows how the training went. A run that trains nothing was trained on nothing, whatever data it looked at.
    """
    config, path = run_config(model), weights_file(model)
    if config is None:
        return Facts(trainable_parameters=0, checkpoint_bytes=0)
    events = read_events(model) if is_run(model) else []
    start, end = first_event(events, "start"), last_event(events, "end")
    trains = config.trainable != "none"
    return Facts(
        trainable_parameters=start.get("trainable_parameters"),
        total_parameters=start.get("total_parameters"),
        checkpoint_bytes=path.stat().st_size if path else None,
        weights_sha256=weights_sha256(model),
        trained_on=config.data.dataset if trains else None,
        training_seconds=end.get("seconds") if trains else None,
        training_peak_memory_bytes=end.get("peak_memory_bytes") if trains else None,
    )


def weights_sha256(model: Path) -> str | None:
    """Digest of what a model learned; none for CLIP by name."""
    path = weights_file(model)
    if path is None:
        return None
    file = path.stat()
    return _sha256_of(path.resolve(), file.st_size, file.st_mtime_ns)


def weights_file(model: Path) -> Path | None:
    """The file of a model's own weights, beside its backbone; none for CLIP by name, or where there is none yet."""
    candidates = [*(model / name for name in (BEST, *WEIGHT_FILES)), model]
    return next((path for path in candidates if path.is_file()), None)


def selection_note(model: Path) -> str:
    """`selected on test` where a run chose its epoch on the test split, for every result of it to carry."""
    config = run_config(model)
    return "selected on test" if config is not None and config.data.select_on == "test" else ""


@lru_cache(maxsize=1024)
def _sha256_of(path: Path, size: int, mtime_ns: int) -> str:
    """Read once while a file keeps its size and time: a study asks for each of its runs, on every split."""
    return sha256_of(path)
