"""PyTorch weights in and out: one rule table per original, used in both directions."""
