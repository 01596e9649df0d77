# SPDX-License-Identifier: MIT
"""`python -m regrow`: the command."""

import sys

from regrow.app.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
