"""The number of what ``--json`` prints."""

SCHEMA = 1
"""Raised when a field changes its meaning or goes. Fields are only ever added under a number.

Objects carry it as ``schema``. The lists that ``agents`` and ``connections`` print are of the same number as the object
of ``status``, which names it for all.
"""
