"""The connection to Ray: to a cluster that is there, or to one on this machine that ends with the run."""

import logging
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

import psutil

from fedlora.config.schema import RunConfig
from fedlora.errors import RunError

log = logging.getLogger(__name__)

PATIENCE = 10.0
"""Seconds for a given address to answer, and for Ray's processes to end."""

_SHORT = {"RAY_NUM_REDIS_GET_RETRIES": "2"}
"""Twice, and not twenty times, half a minute for what listens at an address and is not Ray."""


def require_ray() -> None:
    """Raises RunError if Ray is not installed."""
    if find_spec("ray") is None:
        raise RunError("engine=ray needs the package ray, which is not installed: pip install 'fedlora[ray]'")


@contextmanager
def connected(config: RunConfig, gpus: int) -> Iterator[Any]:
    """The module `ray`, connected as `engine.address` says. gpus: how many a Ray of our own is to manage.

    Where this process is connected already, that connection is used and stays.

    Raises RunError if Ray is not installed, nothing answers at the address, or Ray does not take us.
    """
    require_ray()
    address = config.engine.address
    if address not in (None, "auto"):
        _check_reachable(address)
    with _environment(_SHORT if address else _own_settings()):  # Ray reads it once, as it is imported
        import ray

        if ray.is_initialized():
            yield ray
            return
        with _ended_with_us(ray, lambda: _join(ray, address) if address else _begin(ray, config, gpus)):
            yield ray


def _join(ray: Any, address: str) -> None:
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, ImportError) as error:
        raise RunError(f"engine.address={address}: Ray does not take us: {error}") from error


def _check_reachable(address: str) -> None:
    """Raises RunError unless something listens there: Ray itself would try for minutes, and then end the process."""
    try:
        parts = urlsplit(address if "//" in address else f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port:
        raise RunError(f"engine.address={address} is no address of Ray: it is HOST:PORT, ray://HOST:PORT or auto")
    try:
        socket.create_connection((host, port), PATIENCE).close()
    except OSError as error:
        raise RunError(
            f"engine.address={address}: nothing answers there ({error}). Start Ray on that host (`ray start --head`"
            " prints its address), or leave engine.address out: Ray is then started here for the run"
        ) from error


def _begin(ray: Any, config: RunConfig, gpus: int) -> None:
    """Starts Ray on this machine, with a place for each actor."""
    places = (config.engine.workers or 1) * (config.train.threads or 1)
    try:
        ray.init(
            address="local",
            num_cpus=places,
            num_gpus=gpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except Exception as error:
        raise RunError(f"Ray does not start on this machine: {error}") from error


def _own_settings() -> Mapping[str, str]:
    """Environment of a Ray of our own. It listens on the network and does whatever it is told there: by us alone."""
    return {
        **_protection(),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else it warns that this will be the default
    }


@lru_cache(maxsize=1)
def _protection() -> Mapping[str, str]:
    """A secret that Ray asks for; the same for all that this process starts, as Ray reads it once."""
    if "ray" in sys.modules:
        log.warning("ray was imported before this run: whoever reaches the ports of this run's Ray can use it")
        return {}
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray ends the process at SIGTERM, whatever was to happen: what handled it before is put back."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


@contextmanager
def _ended_with_us(ray: Any, begin: Callable[[], None]) -> Iterator[None]:
    """Begins a connection and ends it, and waits until all processes that it started here are gone."""
    others, started = set(psutil.Process().children()), set[psutil.Process]()
    try:
        with _signals_kept():
            begin()
        started = set(psutil.Process().children()) - others
        yield
    finally:
        all_of_it = started | {below for process in started for below in _below(process)}
        ray.shutdown()
        _, left = psutil.wait_procs(all_of_it, PATIENCE)
        for process in left:
            process.kill()


def _below(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []
