"""Lets the tests of this folder import the module beside them (importlib mode does not)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
