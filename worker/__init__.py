"""Rows in, weights out. Imports ``core``, never ``api``."""
