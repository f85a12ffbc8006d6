"""Packages that few functions need: imported where they are used, with an error that says how to get them."""

from __future__ import annotations


class MissingPackageError(ImportError, RuntimeError):
    """An optional package is not installed or does not import; the message has the command that installs it."""

    def __init__(self, what: str, install: str, reason: ImportError) -> None:
        """
        Args:
            what: needs the package, as a user knows it ("to_dataframe").
            install: what to give ``pip install``.
            reason: of the failed import.
        """
        super().__init__(f"{what} needs a package that does not import ({reason}): pip install {install}")
