"""`python -m cskt` does what `cskt` does."""

from cskt.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
