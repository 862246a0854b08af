"""The flags that say which model runs on which split, shared by the commands that evaluate and query."""

from __future__ import annotations

import argparse
from pathlib import Path

from cskt.app.parsing import Parser
from cskt.config import RunConfig, load_config, validate
from cskt.data.records import Split, find_split, read_dataset
from cskt.embed import Encoder, load
from cskt.model.files import kind_of, read_method
from cskt.model.released import read_released_config


def add_model_flags(parser: Parser) -> None:
    """`model`, `--backbone`, `--device`, `--precision`, and the data set's `--dataset`, `--root`, `--split`."""
    parser.add_argument("model", help="run folder, released folder, merged file, CLIP weights, or clip-tiny")
    parser.add_argument("--backbone", help="CLIP weights of an adapter-only run, if they are not where its config says")
    parser.add_argument("--dataset", help="cuhk-pedes, icfg-pedes, rstpreid or jsonl (default: the run's own)")
    parser.add_argument("--root", help="folder that holds the data set's folder (default: the run's own)")
    parser.add_argument("--split", default="test", help="train, val or test (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (default: %(default)s)")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=128, help="images or captions at once (default: %(default)s)")
    parser.add_argument("--num-workers", type=int, default=4, help="threads that decode images (default: %(default)s)")


def split_of(model: Path, dataset: str | None, root: str | None, split: str) -> Split:
    """A split by name and root, where either is left out as the run itself was trained.

    Raises:
        ValueError: neither the caller nor the run says which data set to use, or it cannot be read.
    """
    own = run_config(model)
    dataset, root = dataset or (own.data.dataset if own else None), root or (own.data.root if own else None)
    if not dataset or not root:
        raise ValueError(f"{model} is no run that names its data; say which to use: --dataset rstpreid --root DIR")
    return find_split(read_dataset(dataset, Path(root)), split)


def load_model_and_split(args: argparse.Namespace) -> tuple[Encoder, Split]:
    """The encoder and the split that the flags of `add_model_flags` name.

    Raises:
        ValueError: the data set or the model cannot be read.
    """
    split = split_of(Path(args.model), args.dataset, args.root, args.split)
    encoder = load(
        args.model,
        args.backbone,
        args.device,
        precision=args.precision,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
    )
    return encoder, split


def run_config(model: Path) -> RunConfig | None:
    """The config of a run folder, of a released CSKT folder or of a run's weight file; none for plain CLIP weights."""
    if (model / "config.yaml").is_file():
        return load_config(model / "config.yaml")
    if (model / "configs.yaml").is_file():
        return read_released_config(model)
    if model.suffix == ".safetensors" and model.is_file() and kind_of(model) == "method":
        return validate(RunConfig, read_method(model).config, f"{model}: config")
    return None
