"""``python -m normlib``."""

import sys

from normlib.cli import main

sys.exit(main())
