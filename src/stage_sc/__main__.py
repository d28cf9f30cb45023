"""``python -m stage_sc``: the command ``stage-sc``."""

from __future__ import annotations

import sys

from stage_sc._command import main

if __name__ == "__main__":
    sys.exit(main())
