"""PyTorch weights in and out: one table of rules per original, used both ways."""
