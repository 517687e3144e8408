"""Shapes and types of public tensor functions are checked at run time, in the tests only."""

from __future__ import annotations

import os

from jaxtyping import install_import_hook

CHECKED_PACKAGES = ["pipeline.losses", "pipeline.students", "pipeline.frontends"]

# Set to 0 to debug without the checks. Must come before the first import of these packages, hence here.
if os.environ.get("OSSICLE_CHECK_SHAPES", "1") != "0":
    install_import_hook(CHECKED_PACKAGES, "beartype.beartype")
