"""Data sets: where they lie or come from, and the examples that they give."""
