"""``python -m mgmtctl``."""

from __future__ import annotations

import sys

from mgmtctl.main import main

if __name__ == "__main__":
    sys.exit(main())
