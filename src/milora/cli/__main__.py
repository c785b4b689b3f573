"""``python -m milora.cli``, the same as ``milora``."""

import sys

from milora.cli.app import main

sys.exit(main())
