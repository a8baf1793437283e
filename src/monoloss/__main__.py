"""``python -m monoloss``, which is the command ``monoloss``. Tested in ``tests/behaviour/test_cli_start.py``."""

import sys

from monoloss.cli import main

sys.exit(main())
