"""The fast path: how many draws, examples and steps are evaluated at once. From outside, use `Engine`."""
