"""The benchmarks are programs in a folder, no package."""

import sys

from tests.project import ROOT

sys.path.append(str(ROOT / "benchmarks"))
