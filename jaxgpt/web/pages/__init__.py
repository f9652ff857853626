"""What the page offers for each kind of run."""
