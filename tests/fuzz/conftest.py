# SPDX-License-Identifier: MIT
"""Makes the strategies of this folder and the toys of the callbacks' tests importable."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "callbacks")]
