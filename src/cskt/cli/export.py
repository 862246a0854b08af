"""`cskt export`: a run as one self-contained file, a trained CLIP as a backbone for other runs, a folder for the
released programs, or a model for other runtimes (`export_runtime`)."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cskt.cli.export_runtime import RUNTIME_FLAGS, add_runtime_flags, export_runtime
from cskt.cli.model_flags import add_ignore_extra_flag, add_weights_flag
from cskt.cli.parsing import Parser, given
from cskt.config import RunConfig, as_trained, load_config, to_dict, with_method
from cskt.config.file_names import BEST, CONFIG, HEADS, LAST
from cskt.data.datasets import folders, read_dataset
from cskt.data.records import select_splits
from cskt.embed import Encoder, load
from cskt.embed.exported import SUFFIXES
from cskt.embed.hub import local_path
from cskt.errors import CsktError, out_of_memory_errors
from cskt.export.folder import atomic_folder
from cskt.model.io.native import MethodFile, read_method, save_backbone, save_weights
from cskt.model.io.released.writer import check_expressible, method_for, write_released
from cskt.training.initial_weights import read_run_heads
from cskt.training.objective import Objective
from cskt.utils.modules import named_tensors

logger = logging.getLogger(__name__)

RELEASED = "released"


@out_of_memory_errors()
def main(argv: Sequence[str]) -> int:
    """See `cskt export --help`."""
    parser = Parser(prog="cskt export", description="Write a run in another form.")
    add = parser.add_argument
    # fmt: off
    add("run", type=Path, help="run folder; with --merge and the runtimes of --format any model")
    add("--backbone", help="CLIP weights of an adapter-only run, if not where its config says")
    add_weights_flag(parser)
    add_ignore_extra_flag(parser)
    form = parser.add_mutually_exclusive_group(required=True)
    form.add_argument("--merge", type=Path, metavar="FILE", help="backbone and method in one .safetensors file")
    form.add_argument("--as-backbone", type=Path, metavar="FILE",
        help="a whole trained CLIP, for --backbone.name of other runs")
    form.add_argument("--format", choices=(*SUFFIXES, RELEASED),
        help="a folder for ONNX Runtime or OpenVINO, or for the program of the method's authors, checked")
    add("--half", action="store_true", help="with --as-backbone: store float16")
    add("--seen-tokens", action="store_true", help="with --as-backbone: keep the embeddings of training's words only")
    # fmt: on
    add_runtime_flags(parser)
    flags = parser.parse(argv)
    check_flags(flags)
    if flags.format and flags.format != RELEASED:
        export_runtime(flags)
        return 0
    if not (local_path(flags.run) / CONFIG).is_file():
        return export_other(flags)
    if flags.ignore_extra:
        raise CsktError(f"{flags.run}: a run of cskt, which has no unknown tensors; leave out --ignore-extra")
    if flags.weights == "ema":
        raise CsktError(f"{flags.run}: a trained run has one set of weights; leave out --weights ema")
    run = read_run(flags.run, flags.backbone)
    if flags.format:
        target = flags.output or flags.run / RELEASED
        export_released(target, run, flags.root)
    elif flags.merge:
        target = flags.merge
        write_merged(target, run)
    else:
        target = flags.as_backbone
        write_backbone(target, run, half=flags.half, seen_tokens=flags.seen_tokens)
    print(target)
    return 0


def export_other(flags: argparse.Namespace) -> int:
    """Write a model that is no run, such as a released folder, into one file."""
    if not flags.merge:
        way = "--as-backbone" if flags.as_backbone else f"--format {RELEASED}"
        raise CsktError(
            f"{flags.run}: no run folder (it has no {CONFIG}), which {way} takes; --merge and --format onnx or openvino"
            " take any model, released folders included"
        )
    encoder = load(flags.run, flags.backbone, "cpu", weights=flags.weights, ignore_extra=flags.ignore_extra)
    print(encoder.save(flags.merge))
    return 0


def check_flags(flags: argparse.Namespace) -> None:
    """Check that the flags belong together, before anything is read."""
    if (flags.merge or flags.format) and (flags.half or flags.seen_tokens):
        raise CsktError("--half and --seen-tokens shorten a backbone; give them with --as-backbone")
    if flags.format and flags.format != RELEASED:
        return
    allowed = ("output", "root") if flags.format else ()
    if others := [name for name in given(flags, RUNTIME_FLAGS) if name not in allowed]:
        raise CsktError(f"--{others[0].replace('_', '-')} belongs to --format; give it with --format onnx or openvino")
    flag, target = ("--merge", flags.merge) if flags.merge else ("--as-backbone", flags.as_backbone)
    if target is not None and target.suffix != ".safetensors":
        raise CsktError(f"{flag} {target}: name a file that ends in .safetensors")


@dataclass(frozen=True)
class Folded:
    """A run whose low-rank updates are folded into its weights, so that no config of the export names any."""

    folder: Path
    config: RunConfig
    source: MethodFile
    """The run's weight file, with the source of its backbone and facts."""
    encoder: Encoder

    @property
    def state(self) -> dict[str, Tensor]:
        """Every tensor of the model by name."""
        return {name: value.detach() for name, value in named_tensors(self.encoder.model).items()}


def read_run(folder: Path, backbone: str | None) -> Folded:
    """Load a run over its backbone."""
    folder = local_path(folder)
    config = as_trained(load_config(folder / CONFIG, fit=False))
    source = read_method(folder / BEST)
    encoder = load(folder, backbone, "cpu")
    encoder.model.fold_low_rank()
    return Folded(folder, with_method(config, encoder.model.method), source, encoder)


def write_merged(target: Path, run: Folded) -> None:
    """Write backbone and method into one file."""
    file = dataclasses.replace(
        run.source,
        config=to_dict(run.config),
        architecture=run.encoder.model.architecture,
        known_token_ids=run.encoder.tokenizer.known_ids,
        tensors=run.state,
    )
    save_weights(target, file)


def write_backbone(target: Path, run: Folded, *, half: bool, seen_tokens: bool) -> None:
    """Write the towers alone, as a backbone of other runs."""
    state = run.state
    if added := [name for name in state if not name.startswith(("vision.", "text."))]:
        raise CsktError(f"{run.folder}: has method parts ({added[0]}, ...), a backbone has none; use --merge")
    known_token_ids = None
    if seen_tokens:
        split = read_dataset(run.config.data.dataset, Path(run.config.data.root))["train"]
        known_token_ids = frozenset(run.encoder.tokenizer(split.captions).flatten().tolist())
    config = run.config
    facts = {"seed": str(config.seed), "recipe": config.name, "interpolation": config.backbone.interpolation}
    save_backbone(
        target, state, run.encoder.model.architecture,
        facts=run.source.facts | facts, half=half, known_token_ids=known_token_ids,
    )  # fmt: skip


def export_released(target: Path, run: Folded, root: str | None) -> None:
    """Write a folder for the released programs, with the training heads of the best epoch; it must be empty or absent.

    The data set is in `root`, or where the config says.
    """
    config, architecture = run.config, run.encoder.model.architecture
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise CsktError(f"{target}: holds something already; name another folder with --output")
    dataset = config.data.dataset
    if dataset not in folders():
        known = ", ".join(folders().values())
        raise CsktError(f"data.dataset {dataset}: the released programs read {known} only")
    try:
        check_expressible(config, architecture)
    except CsktError as error:
        raise CsktError(f"{run.folder}: {error}") from None
    place = Path(root or config.data.root).absolute()
    heads = _heads(run, place)
    # The user may have named the data set's folder or the one that contains it.
    name = folders()[dataset]
    root_dir = place.parent if place.name == name and not (place / name).is_dir() else place
    with atomic_folder(target) as fresh:
        lost = write_released(
            fresh,
            config,
            architecture,
            run.state,
            heads,
            placed_at=target.absolute(),
            root_dir=root_dir,
            dataset_name=name,
            epoch=int(run.source.facts.get("epoch", 0)),
        )
    if lost:
        unused = "settings of the training, which test.py does not use"
        logger.warning("the released folder has no word for %s: %s", ", ".join(lost), unused)


def _heads(run: Folded, root: Path) -> dict[str, Tensor]:
    """Return the heads that the released program stores, the classifier with a row for each identity that it counts."""
    config = run.config
    starts = method_for(config).heads
    wanted = [loss for loss in starts if loss in config.loss.weights]
    if not wanted:
        return {}
    found = read_run_heads(run.folder)
    if found is None:
        raise CsktError(
            f"{run.folder}: has neither {HEADS} nor {LAST}, so the heads of the losses {', '.join(wanted)} are lost;"
            " the released program needs them, use --merge"
        )
    if found.note:
        logger.warning("%s", found.note)
    rows = len(found.tensors.get("classifier.weight", ()))
    with torch.device("meta"):
        objective = Objective(config.loss, config.mlm, run.encoder.model.architecture, rows)
    own = {
        name: value
        for name, value in objective.named_parameters()
        if name.startswith(tuple(starts[loss] for loss in wanted))
    }
    for name, value in own.items():
        if name not in found.tensors or found.tensors[name].shape != value.shape:
            shape = list(value.shape)
            raise CsktError(f"{run.folder}: the training heads have no '{name}' of shape {shape}; they are corrupt")
    heads = {name: found.tensors[name] for name in own}
    return heads if "id" not in wanted else heads | _whole_classifier(heads, run, root)


def _whole_classifier(heads: dict[str, Tensor], run: Folded, root: Path) -> dict[str, Tensor]:
    """Return the classifier with a row of zeros for each identity of the split that the run did not train on.

    The released program counts all people of the training split. A run may have held some out (`holdout_fraction` of
    ICFG-PEDES, which has no val split) or left some out (`train_fraction`).
    """
    data, rows = run.config.data, len(heads["classifier.weight"])
    if data.mix:
        raise CsktError(f"{run.folder}: trained on a mix of data sets, and the released programs know only one")
    has_no_val = data.dataset == "icfg-pedes"
    if data.train_fraction == 1 and not (has_no_val and data.select_on == "val"):
        return {}
    if not root.is_dir():
        raise CsktError(
            f"{run.folder}: its classifier covers a part of the training identities, and {root} is not here to say"
            " which; name the data set's folder: --root DIR"
        )
    splits = read_dataset(data.dataset, root)
    trained, _ = select_splits(splits, data)
    people = sorted(set(splits["train"].image_pids))
    own = sorted(set(trained.image_pids))
    if len(own) != rows:
        raise CsktError(
            f"{root}: has {len(own)} identities to train on, and the classifier of {run.folder} has {rows}; give the"
            " data set that the run was trained on: --root DIR"
        )
    logger.info("%d identities that the run did not train on get a classifier row of zeros", len(people) - rows)
    index = torch.tensor([people.index(pid) for pid in own])
    whole = {}
    for name in ("classifier.weight", "classifier.bias"):
        whole[name] = torch.zeros(len(people), *heads[name].shape[1:])
        whole[name][index] = heads[name]
    return whole
