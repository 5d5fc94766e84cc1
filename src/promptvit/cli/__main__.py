"""`python -m promptvit.cli` is `promptvit`."""

import sys

from promptvit.cli.main import main

sys.exit(main())
