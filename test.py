"""The published test command: python test.py --config_file path/to/configs.yaml (see README.md)."""

from cskt.cli.released_programs import test_main

if __name__ == "__main__":
    raise SystemExit(test_main())
