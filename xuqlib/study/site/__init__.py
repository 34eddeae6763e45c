"""The study as pages that open without a network."""
