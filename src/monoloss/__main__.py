"""``python -m monoloss``: the same as the command ``monoloss``."""

import sys

from monoloss.cli import main

sys.exit(main())
