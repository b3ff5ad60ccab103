"""Keeps libraries from reporting their use over the network."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def unreported() -> Iterator[None]:
    """Say ``CI=true`` inside of the block, to OpenVINO and NNCF, which then send no usage data.

    They do unasked, on import and with each conversion, from a thread that crashes an interpreter that ends meanwhile.
    """
    before = os.environ.get("CI")
    os.environ["CI"] = "true"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("CI", None)
        else:
            os.environ["CI"] = before
