"""`python -m vr1lib` is the `vr1` command."""

import sys

from vr1lib.workbench.cli import main

sys.exit(main())
