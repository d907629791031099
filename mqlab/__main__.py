"""``python -m mqlab``: see ``mqlab.cli``."""

import sys

from mqlab.cli import main

sys.exit(main())
