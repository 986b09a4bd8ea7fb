"""Shared fixtures: golden files; tests marked `gpu` are skipped, with the reason, where no kernel can be launched."""

from __future__ import annotations

import difflib
import gc
import os
from pathlib import Path

import pytest
from hypothesis import settings

from fcgen.runtime import driver

# In CI every run draws the same examples; elsewhere each run looks at new ones. Neither spends minutes on shrinking a failure.
settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("dev", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "dev")

#: a test that wants schedules tried in the simulator as they are compiled takes this out
os.environ["FCGEN_CHECK"] = "0"
#: workers, which start after this, keep NumPy to one thread each: threads of several that wait for each other cost more than products
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
#: programs are graphs of small objects without cycles: to look for cycles after every 700 new ones takes a twentieth of a compilation
gc.set_threshold(20_000, 20, 20)

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write what the tests produce as the new golden files")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
    marked = [item for item in items if item.get_closest_marker("gpu")]
    ok, reason = driver.available() if marked else (True, "")
    if not ok:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=f"needs a GPU: {reason}"))


@pytest.fixture
def golden(request: pytest.FixtureRequest):
    """`golden(name, text)` compares text with tests/golden/<name>; `--update-golden` writes it instead.
    Review the diff like code."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
            return
        if not path.exists():
            pytest.fail(f"no golden file {name}: run pytest --update-golden and review it")
        want = path.read_text(encoding="utf-8")
        if want != text:
            diff = difflib.unified_diff(want.splitlines(), text.splitlines(), f"golden/{name}", "now", lineterm="", n=2)
            pytest.fail("\n".join(["differs from the golden file (--update-golden accepts it)", *list(diff)[:80]]), pytrace=False)

    return check
