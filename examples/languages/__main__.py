"""`python -m examples.languages`: what `make languages` runs once its environment is there."""

from __future__ import annotations

import sys

from examples.languages.demonstration import main

if __name__ == "__main__":
    sys.exit(main())
