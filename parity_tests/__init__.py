"""Our models beside the originals': their recorded numbers, and twins in PyTorch."""

import pathlib

GOLDEN = pathlib.Path(__file__).parent / "golden"
