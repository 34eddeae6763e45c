"""A report about a reader's own network: one page that works without a kernel or a network, and its numbers."""
