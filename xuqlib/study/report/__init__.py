"""A report about a reader's own network: one page that works without a kernel or a network, and its numbers."""

OUTPUTS = ("logits", "probabilities", "binary", "regression")  # what a network may answer
POSTERIORS = ("mc_dropout", "mc_dropconnect", "laplace")  # where draws may come from
