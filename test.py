"""The published test command: python test.py --config_file path/to/configs.yaml (see README.md)."""

from cskt.app.published import test_main

if __name__ == "__main__":
    raise SystemExit(test_main())
