"""The published programs, `train.py` and `test.py`: their flags, translated and handed on."""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cskt.cli.main import guarded
from cskt.cli.parsing import Parser, config_value, overrides_of, shown
from cskt.config import RunConfig, flat_fields, load_config
from cskt.config.released_flags import FLAGS, IRRA, REFERENCE, from_published, recipe_of, to_published
from cskt.errors import CsktError, out_of_memory_errors
from cskt.utils.paths import expanded

logger = logging.getLogger(__name__)

TRAIN_FLAGS = {
    "name": "name of the run",
    "output_dir": "folder that receives <dataset>/<time>_<name>",
    "log_period": "steps between log lines",
    "eval_period": "epochs between evaluations",
    "val_dataset": "val (default here) or test: the split that picks the best epoch; test is the published protocol",
    "pretrain_choice": "CLIP backbone: ViT-B/16, a path, ...",
    "temperature": "temperature of sdm and itc",
    "depth": "blocks with prompts of their own",
    "n_ctx": "prompts per tower and block",
    "lr_factor": "rate of heads that start at random, relative to lr",
    "loss_names": "losses joined by +: sdm, itc, cmpm, id, triplet, tal; mlm beside --MLM",
    "id_loss_weight": "weight of the id loss",
    "mlm_loss_weight": "weight of the mlm loss",
    "cmt_depth": "blocks of the mlm loss's interaction encoder",
    "img_size": "height,width in pixels",
    "stride_size": "distance between patches in pixels (obeyed here)",
    "text_length": "most tokens of a caption",
    "vocab_size": "49408, CLIP's",
    "optimizer": "Adam (eps 1e-3), AdamW (eps 1e-8) or SGD",
    "lr": "base learning rate",
    "bias_lr_factor": "rate of biases, relative to lr",
    "momentum": "momentum of SGD",
    "weight_decay": "weight decay",
    "weight_decay_bias": "weight decay of biases",
    "alpha": "Adam's beta 1",
    "beta": "Adam's beta 2",
    "num_epoch": "epochs",
    "milestones": "epochs after which the step schedule multiplies the rate by gamma",
    "gamma": "factor of the step schedule",
    "warmup_factor": "share of the rate that warm-up starts from",
    "warmup_epochs": "epochs of warm-up",
    "warmup_method": "linear or constant",
    "lrscheduler": "cosine, step, exp, linear or poly",
    "target_lr": "rate at the end of cosine and poly",
    "power": "exponent of poly",
    "dataset_name": "CUHK-PEDES, ICFG-PEDES or RSTPReid",
    "sampler": "random, or identity: people and steps drawn as the released program does",
    "num_instance": "pairs of one identity in a batch of the identity sampler",
    "root_dir": "folder that holds the data set's folder",
    "batch_size": "pairs per step",
    "test_batch_size": "images or captions encoded at once",
    "num_workers": "threads that decode images",
}
"""Flags of the released train.py that take a value."""
OUR_KEYS = {
    "device": "device",
    "seed": "seed",
    "precision": "precision",
    "checkpoint_activations": "loop.checkpoint_activations",
    "weights": "backbone.weights",
    "activation": "backbone.activation",
    "vision_heads": "backbone.vision_heads",
    "text_heads": "backbone.text_heads",
    "image_mean": "backbone.image_mean",
    "image_std": "backbone.image_std",
    "interpolation": "backbone.interpolation",
}
"""Flags of ours that the released train.py lacks -> the config keys that they set."""
WITHOUT_EFFECT = ("masked_token_rate", "masked_token_unchanged_rate")
"""Flags that the released program takes and does not look at."""
MLM_WITH_PROMPTS = (
    "the released CSKT program cannot run the loss mlm with prompts (--MLM with --depth, --n_ctx): it calls a masking"
    " function that does not exist"
)
MLM_HELP = """\
masked captions feed every loss, and the loss mlm is learned where --loss_names has it; without --depth and --n_ctx,
which only CSKT has, the flags are laid over irra; with them the released program cannot run the loss mlm, while this
one trains"""
TEST_REFUSED = "train.py trains; use test.py --config_file RUN/configs.yaml"


def train_main(argv: Sequence[str] | None = None) -> int:
    """`python train.py ...`: exit code 0, or 2 with one line on stderr."""
    return guarded(_train, sys.argv[1:] if argv is None else argv, "train.py")


def test_main(argv: Sequence[str] | None = None) -> int:
    """`python test.py ...`: exit code 0, or 2 with one line on stderr."""
    return guarded(_test, sys.argv[1:] if argv is None else argv, "test.py")


def _train(argv: Sequence[str]) -> int:
    from cskt.cli.train import run  # noqa: PLC0415  (--help should not wait for torch)
    from cskt.model.io.weights import assume_openai  # noqa: PLC0415
    from cskt.training.launch import read_ranks  # noqa: PLC0415
    from cskt.training.run_folder import LAST  # noqa: PLC0415

    flags = _train_parser().parse(argv)
    if flags.test:
        raise CsktError(f"--test: {TEST_REFUSED}")
    if flags.local_rank not in (0, read_ranks().local_rank):
        raise CsktError(f"--local_rank {flags.local_rank}: no launcher has started other processes; use torchrun")
    last = Path(flags.resume_ckpt_file)
    if flags.resume and last.name != LAST:
        raise CsktError("--resume: say what to go on with: --resume_ckpt_file RUN/last.pt")
    name, reason = _recipe(flags)
    recipe = load_config(name)  # first alone, for what is wrong in the file is told in the file's words
    try:
        config = load_config(name, _overrides(flags, recipe))
        if expanded(config.backbone.name).is_file():  # published names are known by their digests
            config = replace(config, backbone=assume_openai(config.backbone))
        _check_mlm(flags.MLM, recipe, config)
        with_prompts = flags.MLM and config.prompts.directions != "none"
        if config.mlm.without_loss:
            logger.info(
                "--MLM without the loss mlm: masked captions for %s, as in the released programs%s",
                "+".join(config.loss.weights), f"; {MLM_WITH_PROMPTS}" if with_prompts else "",
            )  # fmt: skip
        elif with_prompts:
            logger.warning("%s; this one trains it, but there is no published result to compare with", MLM_WITH_PROMPTS)
        logger.info("recipe: %s (%s)", name, reason)
        with out_of_memory_errors("use a smaller --batch_size, --precision bf16 or --checkpoint_activations"):
            if flags.resume:
                return run(config, last.parent, resume=True, refuse_overlaps=False)
            return run(config, refuse_overlaps=False)
    except CsktError as error:
        raise CsktError(in_words_of_flags(str(error))) from error


def _recipe(flags: argparse.Namespace) -> tuple[str, str]:
    """The recipe that the flags are laid over, and why it is that one."""
    if flags.recipe is not None:
        return flags.recipe, "as --recipe says"
    name = recipe_of(vars(flags))
    if name == IRRA:
        return name, "for --MLM without --depth and --n_ctx"
    return name, "for --MLM with --depth or --n_ctx" if flags.MLM else "for neither --recipe nor --MLM is given"


def _check_mlm(masking: bool, recipe: RunConfig, config: RunConfig) -> None:
    """Raise CsktError where the flags ask for the loss mlm and not for the masked words that it needs."""
    if not masking and "mlm" in config.loss.weights.keys() - recipe.loss.weights.keys():
        names = "+".join(config.loss.weights)
        raise CsktError(f"--loss_names {names}: the loss mlm needs masked words; add --MLM")


def _train_parser() -> Parser:
    reference, irra = to_published(load_config(REFERENCE)), to_published(load_config(IRRA))
    changes = [
        f"{name} {shown(irra[name])}" for name in TRAIN_FLAGS if irra.get(name, reference[name]) != reference[name]
    ]
    parser = Parser(
        prog="train.py",
        separator="_",
        description=(
            "Train CSKT, or with --MLM IRRA, with the flags of the released programs.\n"
            f"In brackets: the values of {REFERENCE}; --MLM without --depth and --n_ctx takes {IRRA} instead:\n"
            f"{', '.join(changes)}."
        ),
    )
    parser.add_argument("--recipe", help=f"recipe that the flags are laid over ({REFERENCE}; with --MLM see there)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed (%(default)s, as the released program fixes it)")
    parser.add_argument("--precision", default=argparse.SUPPRESS, help="fp32, bf16 or fp16 (fp32)")
    parser.add_argument(
        "--checkpoint_activations",
        action="store_true",
        default=argparse.SUPPRESS,
        help="recompute the blocks in the backward pass: less memory, more time",
    )
    parser.add_argument("--img_aug", action="store_true", help="random crop and random erasing beside the flip")
    parser.add_argument("--resume", action="store_true", help="go on with --resume_ckpt_file")
    parser.add_argument("--resume_ckpt_file", default="", metavar="LAST.PT", help="last.pt of the run to go on with")
    parser.add_argument("--local_rank", type=int, default=0, help="accepted from launchers")
    for name, text in TRAIN_FLAGS.items():
        value = reference.get(name)
        parser.add_argument(
            f"--{name}",
            nargs="+" if name == "milestones" else None,
            default=argparse.SUPPRESS,
            metavar="VALUE",
            help=text if value is None else f"{text} ({shown(value)})",
        )
    backbone = parser.add_argument_group("for a backbone whose file does not state it, flags of this program")
    for name in ("weights", "activation", "vision_heads", "text_heads", "image_mean", "image_std", "interpolation"):
        backbone.add_argument(
            f"--{name}", default=argparse.SUPPRESS, metavar="VALUE", help=f"config key {OUR_KEYS[name]}, see docs"
        )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any other key of the config, as of cskt train"
    )
    for name in WITHOUT_EFFECT:
        parser.add_argument(f"--{name}", default=argparse.SUPPRESS, help="without effect, as in the released program")
    parser.add_argument("--MLM", action="store_true", help=MLM_HELP)
    parser.add_argument("--test", action="store_true", help=f"refused: {TEST_REFUSED}")
    return parser


def _overrides(flags: argparse.Namespace, recipe: RunConfig) -> dict[str, Any]:
    """Config key -> value for the flags that were given."""
    published: dict[str, Any] = {"img_aug": flags.img_aug, "MLM": flags.MLM}
    ours: dict[str, Any] = {}
    for name, given in vars(flags).items():
        text = ",".join(given) if isinstance(given, list) else given
        if name in TRAIN_FLAGS:
            published[name] = config_value(FLAGS[name].key if name in FLAGS else "", text)
        elif name in OUR_KEYS:
            ours[OUR_KEYS[name]] = config_value(OUR_KEYS[name], given) if isinstance(given, str) else given
    return from_published(published, recipe.loss.weights) | ours | overrides_of(flags.set)


def in_words_of_flags(message: str) -> str:
    """A message with the config keys called by the flags of train.py that set them, `--set` where there is no other.

    `overrides: data.select_on: input should be ...` -> `--val_dataset: input should be ...`
    """
    names = {flag.key: name for name, flag in FLAGS.items()} | {key: name for name, key in OUR_KEYS.items()}
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
    from cskt.cli.evaluate import report_metrics  # noqa: PLC0415  (--help should not wait for torch)
    from cskt.cli.model_flags import OWN_PRECISION, PRECISION_HELP, PRECISIONS, add_weights_flag  # noqa: PLC0415
    from cskt.embed import load  # noqa: PLC0415
    from cskt.evaluation.model_data import split_of  # noqa: PLC0415

    parser = Parser(
        prog="test.py",
        separator="_",
        description="Evaluate a run, or a released CSKT or IRRA folder, on the test split.",
    )
    parser.add_argument("--config_file", type=Path, required=True, help="configs.yaml of the run or released folder")
    parser.add_argument("--root_dir", help="folder that holds the data set's folder (default: the config's)")
    parser.add_argument("--dataset_name", help="CUHK-PEDES, ICFG-PEDES or RSTPReid (default: the config's)")
    parser.add_argument("--split", default="test", help="train, val or test (%(default)s)")
    parser.add_argument("--backbone", help="CLIP weights of an adapter-only run, if not where its config says")
    add_weights_flag(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (%(default)s)")
    parser.add_argument("--precision", choices=PRECISIONS, help=PRECISION_HELP.format(OWN_PRECISION))
    parser.add_argument("--json", action="store_true", help="fractions as JSON instead of a table")
    flags = parser.parse(argv)
    if not flags.config_file.is_file():
        raise CsktError(f"{flags.config_file}: no such file")
    model = flags.config_file.parent
    try:
        split = split_of(
            str(model), flags.dataset_name, flags.root_dir, flags.split, root_flag="--root_dir", refuse_overlaps=False
        )
        with out_of_memory_errors("use --precision bf16 or --device cpu"):
            encoder = load(
                model, flags.backbone, flags.device, precision=flags.precision, weights=flags.weights or "model",
                show_progress=True,
            )  # fmt: skip
            return report_metrics(encoder, split, model, as_json=flags.json)
    except CsktError as error:
        raise CsktError(in_words_of_test(str(error))) from error


def in_words_of_test(message: str) -> str:
    """A message with the flags of `cskt evaluate` called as test.py calls them."""
    for theirs, ours in (("dataset", "dataset_name"), ("root", "root_dir")):
        message = re.sub(rf"(?<![\w-])--{theirs}(?![\w-])", f"--{ours}", message)
    return message


assert TRAIN_FLAGS.keys() >= FLAGS.keys(), "every flag that the table translates can be given"
