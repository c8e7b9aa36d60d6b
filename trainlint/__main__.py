"""`python -m trainlint`, and the start of the command: Ctrl-C counts from the first import on."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line."""
    try:
        from trainlint.cli import main as run

        run()
    except KeyboardInterrupt:
        print("trainlint: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
