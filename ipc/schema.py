"""The version of the ``--json`` output."""

SCHEMA = 1
"""Increased when a field changes its meaning or is removed. Adding a field does not change it.

Objects carry it as ``schema``. The lists of ``agents`` and ``connections`` have no such field. They are of the same
version as the object of ``status``.
"""
