"""HTTP in, HTTP out. Imports ``core``, never ``worker``."""
