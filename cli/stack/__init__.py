"""The whole service on one machine, without containers. Knows nothing about the command line."""
