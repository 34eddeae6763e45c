"""The study: data, trained networks, judges, figures, and the record of what was found. It uses the method."""
