"""The parts of `gpu.py`, one module each, and what they share; the import puts this checkout's library on the path."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
