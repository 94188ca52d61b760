"""The query layer: what the dashboard and the command line show of runs, rounds, clients and privacy. It only reads."""

from fedlora.server.views.views import Link, Views

__all__ = ["Link", "Views"]
