"""Tests marked `gpu` are skipped, with the reason, where no kernel can be launched."""

from __future__ import annotations

import pytest

from fcgen.runtime import driver


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    ok, reason = driver.available() if marked else (True, "")
    if not ok:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=f"needs a GPU: {reason}"))
