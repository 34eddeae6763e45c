"""Networks of the study: what they are, how they are trained, and the published ones."""
