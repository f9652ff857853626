"""Four small-GPT research systems on one JAX core."""

__version__ = "0.1.0"
