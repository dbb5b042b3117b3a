"""``python -m bascule.faces.cli``: the same as ``updatectl``."""

import sys

from bascule.faces.cli import main

sys.exit(main())
