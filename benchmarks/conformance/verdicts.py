"""A pytest plugin that sorts outcomes: passed, failed, or not applicable and why."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import Any

import pytest

#: how many reasons, and names of failures, a table shows
SHOWN = 12


class Verdicts:
    """every: each n-th test is run, so that a sample covers all functions. found: test -> (verdict, reason)."""

    def __init__(self, every: int = 1):
        self.every, self.found, self._launched = every, {}, 0  # type: ignore[var-annotated]
        self._undo: list[Any] = []

    def count_launches(self) -> None:
        """Know which tests reach a kernel."""
        from fcgen.attend import forward
        from fcgen.torch import core

        for module, name in ((forward, "attention"), (core, "attention_varlen")):
            theirs = getattr(module, name)

            def counted(*args: Any, _theirs: Any = theirs, **named: Any) -> Any:
                out = _theirs(*args, **named)
                self._launched += 1
                return out

            setattr(module, name, counted)
            self._undo.append((module, name, theirs))

    def restore(self) -> None:
        for module, name, theirs in self._undo:
            setattr(module, name, theirs)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = items[::self.every]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Any:
        self._launched = 0
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: Any) -> Any:
        report = yield
        if report.when == "call" or report.outcome != "passed":
            self.found.setdefault(item.nodeid, self._verdict(report, call))
        return report

    def _verdict(self, report: Any, call: Any) -> tuple[str, str]:
        text = str(report.longrepr or "")
        if report.outcome == "skipped":
            return "not applicable", "skipped by the test: " + re.sub(r"\s+", " ", text.rsplit("Skipped:", 1)[-1])[:100].strip("(')\" ")
        refused = re.search(r"\[(?:call|compile|trace)/[\w-]+\] ([^\n]+)", text)
        if report.outcome == "failed" and refused:
            return "not applicable", "refused: " + refused[1][:120]
        if not self._launched:
            return "not applicable", "reaches no kernel of fcgen's" + ("" if report.outcome == "passed" else ", and fails without")
        return ("passed", "") if report.outcome == "passed" else ("failed", str(call.excinfo.value)[:300] if call.excinfo else text[-300:])

    def table(self) -> str:
        """By test function, then the reasons and the failures."""
        rows: dict[str, Counter[str]] = defaultdict(Counter)
        for test, (verdict, _) in self.found.items():
            rows[test.split("::")[-1].split("[")[0]][verdict] += 1
        names = ("passed", "not applicable", "failed")
        width = max([len(name) for name in rows] + [10])
        out = [f"{'':{width}}  " + "  ".join(names)]
        for name, counts in [*sorted(rows.items()), ("all", sum(rows.values(), Counter()))]:
            out.append(f"{name:{width}}  " + "  ".join(f"{counts[n]:{len(n)}}" for n in names))
        why = Counter(reason for verdict, reason in self.found.values() if verdict == "not applicable")
        out += ["", "not applicable because:", *[f"{n:6}  {reason}" for reason, n in why.most_common(SHOWN)]]
        failed = [f"{test}: {reason[:100]!r}" for test, (verdict, reason) in self.found.items() if verdict == "failed"]
        return "\n".join([*out, *(["", f"failed ({len(failed)}):", *failed[:SHOWN]] if failed else [])])
