"""The transformer and what generates with it; knows nothing of the systems."""
