"""What single notebooks measure with: their tables, contests and figures. Nothing of the library imports these."""
