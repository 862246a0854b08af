"""The published programs `train.py` and `test.py`, whose flags are translated into config keys."""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cskt.cli.main import guarded
from cskt.cli.parsing import Parser, config_value, overrides_of, shown
from cskt.config import CLIP_SETTINGS, RunConfig, flat_fields, load_config
from cskt.config.file_names import LAST
from cskt.config.released_flags import FLAGS, IRRA, KEYS, REFERENCE, from_published, recipe_of, to_published
from cskt.errors import CsktError, out_of_memory_errors
from cskt.utils.paths import expanded

logger = logging.getLogger(__name__)

BACKBONE_FLAGS = ("weights", *CLIP_SETTINGS)
OUR_KEYS = {
    "device": "device", "seed": "seed", "precision": "precision",
    "checkpoint_activations": "loop.checkpoint_activations",
} | {name: f"backbone.{name}" for name in BACKBONE_FLAGS}  # fmt: skip
"""Flags that the released train.py lacks -> config keys that they set."""
WITHOUT_EFFECT = ("masked_token_rate", "masked_token_unchanged_rate")
"""Flags that the released program accepts and ignores."""
MLM_WITH_PROMPTS = (
    "the released CSKT program cannot run the loss mlm with prompts (--MLM with --depth, --n_ctx): it calls a masking"
    " function that does not exist"
)
MLM_HELP = """\
every loss sees masked captions, and the loss mlm is learned if --loss_names has it; without --depth and --n_ctx, which
only CSKT has, the flags change the recipe irra; with them the released program cannot run the loss mlm; this one can"""
TEST_REFUSED = "train.py trains; use test.py --config_file RUN/configs.yaml"


def train_main(argv: Sequence[str] | None = None) -> int:
    """Run `python train.py ...` and return its exit code."""
    return guarded(_train, sys.argv[1:] if argv is None else argv, "train.py")


def test_main(argv: Sequence[str] | None = None) -> int:
    """Run `python test.py ...` and return its exit code."""
    return guarded(_test, sys.argv[1:] if argv is None else argv, "test.py")


def _train(argv: Sequence[str]) -> int:
    from cskt.cli.train import run  # noqa: PLC0415  (--help should not wait for torch)
    from cskt.model.io.weights import assume_openai  # noqa: PLC0415
    from cskt.training.launch import read_ranks  # noqa: PLC0415

    recipes = {name: load_config(name) for name in (REFERENCE, IRRA)}
    flags = _train_parser(to_published(recipes[REFERENCE]), to_published(recipes[IRRA])).parse(argv)
    if flags.test:
        raise CsktError(f"--test: {TEST_REFUSED}")
    if flags.local_rank not in (0, read_ranks().local_rank):
        raise CsktError(f"--local_rank {flags.local_rank}: no launcher has started other processes; use torchrun")
    last = Path(flags.resume_ckpt_file)
    if flags.resume and last.name != LAST:
        raise CsktError("--resume: name the checkpoint to continue from: --resume_ckpt_file RUN/last.pt")
    name = flags.recipe or recipe_of(vars(flags))
    recipe = recipes.get(name) or load_config(name)
    try:
        config = load_config(recipe, _overrides(flags, recipe), fit=False)
        if expanded(config.backbone.name).is_file():  # published names are known by their digests
            config = replace(config, backbone=assume_openai(config.backbone))
        _check_mlm(flags.MLM, recipe, config)
        logger.info("recipe: %s (%s)", name, _reason(flags))
        with out_of_memory_errors("use a smaller --batch_size, --precision bf16 or --checkpoint_activations"):
            return run(config, last.parent if flags.resume else None, resume=flags.resume, refuse_overlaps=False)
    except CsktError as error:
        raise CsktError(in_words_of_flags(str(error))) from error


def _reason(flags: argparse.Namespace) -> str:
    """Return why the flags change the recipe that they change."""
    if flags.recipe is not None:
        return "as --recipe says"
    if not flags.MLM:
        return "for neither --recipe nor --MLM is given"
    return f"for --MLM {'without --depth and' if recipe_of(vars(flags)) == IRRA else 'with --depth or'} --n_ctx"


def _check_mlm(masking: bool, recipe: RunConfig, config: RunConfig) -> None:
    """Log how masked captions are used."""
    names = "+".join(config.loss.weights)
    if not masking and "mlm" in config.loss.weights.keys() - recipe.loss.weights.keys():
        raise CsktError(f"--loss_names {names}: the loss mlm needs masked words; add --MLM")
    with_prompts = masking and config.prompts.directions != "none"
    if config.mlm.without_loss:
        logger.info(
            "--MLM without the loss mlm: masked captions for %s, as in the released programs%s",
            names, f"; {MLM_WITH_PROMPTS}" if with_prompts else "",
        )  # fmt: skip
    elif with_prompts:
        logger.warning("%s; this one trains it, but there is no published result to compare with", MLM_WITH_PROMPTS)


def _train_parser(reference: Mapping[str, Any], irra: Mapping[str, Any]) -> Parser:
    """Make the parser of train.py, with the values of two recipes, as published flags, for its help."""
    changes = [f"{name} {shown(irra[name])}" for name in FLAGS if irra.get(name, reference[name]) != reference[name]]
    parser = Parser(
        prog="train.py",
        separator="_",
        description=(
            "Train CSKT, or with --MLM IRRA, with the flags of the released programs.\n"
            f"In brackets: the values of {REFERENCE}; --MLM without --depth and --n_ctx takes {IRRA} instead:\n"
            f"{', '.join(changes)}."
        ),
    )
    add = parser.add_argument
    # fmt: off
    add("--recipe", help=f"recipe that the flags change ({REFERENCE}; for --MLM see above)")
    add("--device", default="auto", help="auto, cpu, cuda, mps (%(default)s)")
    add("--seed", type=int, default=1, help="seed (%(default)s, as in the released program)")
    add("--precision", default=argparse.SUPPRESS, help="fp32, bf16 or fp16 (fp32)")
    add("--checkpoint_activations", action="store_true", default=argparse.SUPPRESS,
        help="recompute the blocks in the backward pass: less memory, more time")
    add("--img_aug", action="store_true", help="random crop and random erasing beside the flip")
    add("--resume", action="store_true", help="continue from --resume_ckpt_file")
    add("--resume_ckpt_file", default="", metavar="LAST.PT", help="last.pt of the run to continue")
    add("--local_rank", type=int, default=0, help="accepted from launchers")
    for name, flag in FLAGS.items():
        add(f"--{name}", nargs="+" if name == "milestones" else None, default=argparse.SUPPRESS, metavar="VALUE",
            help=flag.help if reference.get(name) is None else f"{flag.help} ({shown(reference[name])})")
    backbone = parser.add_argument_group("for a backbone whose file does not state it, flags of this program")
    for name in BACKBONE_FLAGS:
        backbone.add_argument(f"--{name}", default=argparse.SUPPRESS, metavar="VALUE",
            help=f"config key {OUR_KEYS[name]}, see docs")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="any other key of the config, as of cskt train")
    for name in WITHOUT_EFFECT:
        add(f"--{name}", default=argparse.SUPPRESS, help="without effect, as in the released program")
    add("--MLM", action="store_true", help=MLM_HELP)
    add("--test", action="store_true", help=f"refused: {TEST_REFUSED}")
    # fmt: on
    return parser


def _overrides(flags: argparse.Namespace, recipe: RunConfig) -> dict[str, Any]:
    """Return config key -> value for the flags that were given."""
    published: dict[str, Any] = {"img_aug": flags.img_aug, "MLM": flags.MLM}
    ours: dict[str, Any] = {}
    for name, given in vars(flags).items():
        text = ",".join(given) if isinstance(given, list) else given
        if name in FLAGS:
            published[name] = config_value(FLAGS[name].key or "", text)
        elif name in OUR_KEYS:
            ours[OUR_KEYS[name]] = config_value(OUR_KEYS[name], given) if isinstance(given, str) else given
    return from_published(published, recipe.loss.weights) | ours | overrides_of(flags.set)


def in_words_of_flags(message: str) -> str:
    """Return a message with config keys replaced by the flags of train.py that set them, or by `--set`.

    `overrides: data.select_on: input should be ...` -> `--val_dataset: input should be ...`
    """
    names = KEYS | {key: name for name, key in OUR_KEYS.items()}
    for key, name in names.items():
        # A key of one word, such as `name`, is a word of any sentence too.
        pattern = rf"(?<![\w.])(--)?{re.escape(key)}(?!\w)" if "." in key else rf"(?<=^overrides: ){key}(?=:)"
        message = re.sub(pattern, f"--{name}", message)
        message = message.replace(f"--{name} (--{name.replace('_', '-')}; ", f"--{name} (")
    others = "|".join(re.escape(key) for key, _ in flat_fields() if "." in key and key not in names)
    return re.sub(rf"(?<![\w.])(set |--set )?(?:--)?({others})(?![\w.=])( \d)?", _as_setting, message).removeprefix(
        "overrides: "
    )


def _as_setting(found: re.Match[str]) -> str:
    """`set optim.ema_decay` -> `give --set optim.ema_decay=VALUE`; `loop.num_epochs 3` -> `--set loop.num_epochs=3`."""
    before, key, value = found.groups()
    return f"{'give ' if before == 'set ' else ''}--set {key}={(value or 'VALUE').strip()}"


def _test(argv: Sequence[str]) -> int:
    from cskt.cli.evaluate import print_metrics  # noqa: PLC0415  (--help should not wait for torch)
    from cskt.cli.model_flags import (  # noqa: PLC0415
        OWN_PRECISION,
        PRECISION_HELP,
        PRECISIONS,
        add_ignore_extra_flag,
        add_weights_flag,
    )
    from cskt.cli.run_results import evaluate_run  # noqa: PLC0415
    from cskt.embed import load  # noqa: PLC0415
    from cskt.evaluation.evaluate import split_of  # noqa: PLC0415

    parser = Parser(
        prog="test.py",
        separator="_",
        description="Evaluate a run or a released folder on the test split.",
    )
    parser.add_argument(
        "--config_file",
        type=Path,
        required=True,
        help="configs.yaml of the run or released folder, or checkpoint_best.pth of TBPS-CLIP",
    )
    parser.add_argument("--root_dir", help="folder that holds the data set's folder (default: the config's)")
    parser.add_argument("--dataset_name", help="CUHK-PEDES, ICFG-PEDES or RSTPReid (default: the config's)")
    parser.add_argument("--split", default="test", help="train, val or test (%(default)s)")
    parser.add_argument("--backbone", help="CLIP weights of an adapter-only run, if not where its config says")
    add_weights_flag(parser)
    add_ignore_extra_flag(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (%(default)s)")
    parser.add_argument("--precision", choices=PRECISIONS, help=PRECISION_HELP.format(OWN_PRECISION))
    parser.add_argument("--json", action="store_true", help="fractions as JSON instead of a table")
    flags = parser.parse(argv)
    if not flags.config_file.is_file():
        raise CsktError(f"{flags.config_file}: no such file")
    model = flags.config_file.parent
    try:
        split = split_of(str(model), flags.dataset_name, flags.root_dir, flags.split, refuse_overlaps=False)
        with out_of_memory_errors("use --precision bf16 or --device cpu"):
            encoder = load(
                model, flags.backbone, flags.device, precision=flags.precision, weights=flags.weights or "model",
                ignore_extra=flags.ignore_extra, show_progress=True,
            )  # fmt: skip
            print_metrics(evaluate_run(encoder, split, model), encoder, model, as_json=flags.json)
            return 0
    except CsktError as error:
        raise CsktError(in_words_of_test(str(error))) from error


def in_words_of_test(message: str) -> str:
    """Return a message with the flags of `cskt evaluate` replaced by those of test.py."""
    for theirs, ours in (("dataset", "dataset_name"), ("root", "root_dir")):
        message = re.sub(rf"(?<![\w-])--{theirs}(?![\w-])", f"--{ours}", message)
    return message
