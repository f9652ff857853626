"""What the page offers for a run, by what its system can do."""
