"""The whole service on one machine, without containers. Knows nothing about the command line."""

from cli.stack.errors import HomeInUse, StackError
from cli.stack.plan import SERVERS_ONLY, Plan, Service
from cli.stack.stack import Connection, Stack

__all__ = ["SERVERS_ONLY", "Connection", "HomeInUse", "Plan", "Service", "Stack", "StackError"]
