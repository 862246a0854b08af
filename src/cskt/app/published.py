"""The published programs, `train.py` and `test.py`: their flags, translated and handed on."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cskt.app.cli import guarded
from cskt.app.parsing import Parser, config_value
from cskt.config import load_config
from cskt.published import FLAGS, from_published

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
    "loss_names": "losses joined by +: sdm, itc, cmpm, id, triplet",
    "id_loss_weight": "weight of the id loss",
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
    "gamma": "factor of the step schedule",
    "warmup_factor": "share of the rate that warm-up starts from",
    "warmup_epochs": "epochs of warm-up",
    "warmup_method": "linear or constant",
    "lrscheduler": "cosine, step, exp, linear or poly",
    "target_lr": "rate at the end of cosine and poly",
    "power": "exponent of poly",
    "dataset_name": "CUHK-PEDES, ICFG-PEDES or RSTPReid",
    "sampler": "random or identity",
    "num_instance": "pairs of one identity in a batch of the identity sampler",
    "root_dir": "folder that holds the data set's folder",
    "batch_size": "pairs per step",
    "test_batch_size": "images or captions encoded at once",
    "num_workers": "threads that decode images",
    "precision": "fp32, bf16 or fp16 arithmetic of the towers (not in the released program)",
}
"""Flags of train.py that take one value."""
OUR_KEYS = {"precision": "precision", "checkpoint_activations": "loop.checkpoint_activations"}
"""Flags that the released train.py lacks -> the config keys that they set."""
MLM_ONLY = ("cmt_depth", "masked_token_rate", "masked_token_unchanged_rate", "mlm_loss_weight")
REFUSED = {
    "MLM": "masked language modelling belongs to IRRA, whose recipe is not part of this version",
    "test": "train.py trains; use test.py --config_file RUN/configs.yaml",
}


def train_main(argv: Sequence[str] | None = None) -> int:
    """`python train.py ...`: exit code 0, or 2 with one line on stderr."""
    return guarded(_train, sys.argv[1:] if argv is None else argv, "train.py")


def test_main(argv: Sequence[str] | None = None) -> int:
    """`python test.py ...`: exit code 0, or 2 with one line on stderr."""
    return guarded(_test, sys.argv[1:] if argv is None else argv, "test.py")


def _train(argv: Sequence[str]) -> int:
    from cskt.app.train import run  # noqa: PLC0415  (--help should not wait for torch)
    from cskt.train.run_folder import LAST  # noqa: PLC0415

    parser = Parser(prog="train.py", separator="_", description="Train CSKT with the flags of the released program.")
    parser.add_argument("--recipe", default="cskt-reference", help="recipe that the flags are laid over (%(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed (the released program fixes it to 1)")
    parser.add_argument("--img_aug", action="store_true", help="random crop and random erasing beside the flip")
    parser.add_argument("--resume", action="store_true", help="go on with --resume_ckpt_file")
    parser.add_argument("--resume_ckpt_file", default="", metavar="LAST.PT", help="last.pt of the run to go on with")
    parser.add_argument(
        "--milestones", nargs="+", type=int, default=argparse.SUPPRESS, help="epochs of the step schedule"
    )
    parser.add_argument("--local_rank", type=int, default=0, help="accepted for launchers; one process trains here")
    for name, text in TRAIN_FLAGS.items():
        parser.add_argument(f"--{name}", default=argparse.SUPPRESS, metavar="VALUE", help=text)
    for name in MLM_ONLY:
        parser.add_argument(f"--{name}", default=argparse.SUPPRESS, help="used with --MLM only")
    for name, reason in REFUSED.items():
        parser.add_argument(f"--{name}", action="store_true", help=f"refused: {reason}")
    args = parser.parse(argv)

    for name, reason in REFUSED.items():
        if getattr(args, name):
            raise ValueError(f"--{name}: {reason}")
    if "mlm" in getattr(args, "loss_names", "").split("+"):
        raise ValueError(f"--loss_names {args.loss_names}: {REFUSED['MLM']}")
    if args.local_rank != 0:
        raise ValueError("--local_rank: this version trains in one process; start it without a launcher")
    flags: dict[str, Any] = {
        name: config_value(FLAGS[name].key if name in FLAGS else "", text)
        for name, text in vars(args).items()
        if name in TRAIN_FLAGS
    }
    flags["img_aug"] = args.img_aug
    if "milestones" in args:
        flags["milestones"] = args.milestones
    last = Path(args.resume_ckpt_file)
    if args.resume and last.name != LAST:
        raise ValueError("--resume: say what to go on with: --resume_ckpt_file RUN/last.pt")
    config = load_config(args.recipe, from_published(flags) | {"device": args.device, "seed": args.seed})
    logger.info("recipe: %s", args.recipe)
    return run(config, last.parent, resume=True) if args.resume else run(config)


def _test(argv: Sequence[str]) -> int:
    from cskt.app.evaluate import report_metrics  # noqa: PLC0415  (--help should not wait for torch)
    from cskt.app.model_flags import split_of  # noqa: PLC0415
    from cskt.embed import load  # noqa: PLC0415

    parser = Parser(
        prog="test.py", separator="_", description="Evaluate a run, or a released CSKT folder, on the test split."
    )
    parser.add_argument("--config_file", type=Path, required=True, help="configs.yaml of the run or released folder")
    parser.add_argument("--root_dir", help="folder that holds the data set's folder (default: the config's)")
    parser.add_argument("--dataset_name", help="CUHK-PEDES, ICFG-PEDES or RSTPReid (default: the config's)")
    parser.add_argument("--split", default="test", help="train, val or test (%(default)s)")
    parser.add_argument("--backbone", help="CLIP weights of an adapter-only run, if not where its config says")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (%(default)s)")
    parser.add_argument("--json", action="store_true", help="fractions as JSON instead of a table")
    args = parser.parse(argv)
    if not args.config_file.is_file():
        raise ValueError(f"{args.config_file}: no such file")
    model = args.config_file.parent
    split = split_of(model, args.dataset_name, args.root_dir, args.split)
    return report_metrics(load(model, args.backbone, args.device), split, model, as_json=args.json)


assert TRAIN_FLAGS.keys() >= FLAGS.keys() - {"milestones"}, "every flag that the table translates can be given"
