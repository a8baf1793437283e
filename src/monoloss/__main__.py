"""``python -m monoloss``, which is the command ``monoloss``."""

import sys

from monoloss.cli import main

sys.exit(main())
