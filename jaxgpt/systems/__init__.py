"""One way each to train, score and generate with the transformer."""
