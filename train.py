"""The published training command: python train.py --name baseline --img_aug ... (see README.md)."""

from cskt.cli.released_programs import train_main

if __name__ == "__main__":
    raise SystemExit(train_main())
