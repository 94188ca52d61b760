"""Builds the dashboard's third-party scripts before the package is put together; pyproject.toml says all the rest."""

import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

sys.path.insert(0, str(Path(__file__).parent.resolve()))

from fedlora.errors import AssetError
from fedlora.server.dashboard import vendor


def build_vendor() -> None:
    """A machine that cannot fetch gets fedlora all the same: its dashboard says what is missing and how to get it."""
    try:
        vendor.build()
    except (AssetError, OSError) as error:
        sys.stderr.write(f"warning: {error}\n")


class BuildWithVendor(build_py):
    """For a wheel and for an editable installation."""

    def run(self) -> None:
        """As usual, after the scripts are there."""
        build_vendor()
        super().run()


class SourceWithVendor(sdist):
    """For a source archive, from which a wheel can then be built without npm."""

    def run(self) -> None:
        """As usual, after the scripts are there."""
        build_vendor()
        super().run()


setup(cmdclass={"build_py": BuildWithVendor, "sdist": SourceWithVendor})
