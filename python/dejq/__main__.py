"""``python -m dejq``: the command line without the script on the PATH."""

import sys

from dejq.cli import main

sys.exit(main())
