"""The ``attune`` command: the whole service on one machine, and a client built on the official SDK."""
