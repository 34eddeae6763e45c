"""Candidates of a race against the clock that tests move; the fixture `clock` is that clock."""

from __future__ import annotations


def moving(clock, seconds, maps=()):
    """A candidate that takes so many seconds of that clock."""

    def candidate():
        clock[0] += seconds
        return maps

    return candidate
