"""Judges: what an explanation, or an uncertainty attribution, is put to the test with."""
