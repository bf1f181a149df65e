"""The example's files import each other as a script's neighbours do, so its folder goes on the path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "triage"))
