"""How many files and connections this process may have open: each client takes some of both."""

import contextlib
import logging
import resource

log = logging.getLogger(__name__)


def raise_limit() -> int:
    """Raises this process's soft limit of open files to its hard one, and logs what it is; -1: there is none.

    Systems start processes with a soft limit of often 1,024, for the sake of old programs.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):  # some systems promise more than they allow
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    most = "any number of" if soft == resource.RLIM_INFINITY else f"{soft:,}"
    log.info("this process may have %s files and connections open at a time (RLIMIT_NOFILE)", most)
    return -1 if soft == resource.RLIM_INFINITY else soft
