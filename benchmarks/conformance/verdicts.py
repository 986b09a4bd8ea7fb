"""Outcomes of tests as verdicts (passed, failed, or not applicable and why), and tables of them."""

from __future__ import annotations

import json
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import adapters

NAMES = ("passed", "not applicable", "failed", "stopped", "not reached")
#: how many reasons, and failures, a table shows
SHOWN = 12

#: what no kernel could be made for is no refusal: the interfaces have said that they take it
_CODED = re.compile(r"\[(?:call|trace|grad)/[\w-]+\] ([^\n]+)")
#: what torch.compile was at when it failed
_OURS = re.compile(r'File "[^"\n]*/fcgen/')
_IN_A_GRAPH = "fcgen refuses this call"
#: in a class of its own each: parameters of tests, and sizes
_NUMBERS = re.compile(r"\b\d+\b")


def refusal(text: str) -> str | None:
    """What fcgen said, where that is what a text ends in."""
    found = _CODED.search(text)
    if found:
        return _NUMBERS.sub("n", found[1])[:120].rstrip()
    if "NestedUserFunctionVariable" in text and "flex_graph.py" in text:
        return "a function made inside of the compiled function cannot be read while that is traced"
    return "in a graph of torch.compile, which cannot say why" if _IN_A_GRAPH in text else None


def ours(traceback: Any) -> bool:
    """Does this traceback pass through fcgen?"""
    return any("/fcgen/" in str(entry.path).replace("\\", "/") for entry in traceback)


class Meter:
    """What a test asked of fcgen. launched: calls that reached a kernel; made, seconds: kernels that were compiled, and how long that took,
    those that another process compiled meanwhile included."""

    def __init__(self) -> None:
        from fcgen.attend import forward
        from fcgen.build import compiler
        from fcgen.torch import core

        self.undone: list[tuple[Any, str, Any]] = []
        for module, name in ((forward, "attention"), (forward, "known"), (core, "attention_varlen")):
            self._stands_for(module, name, self._counted)
        self._stands_for(compiler, "build", self._timed)
        self.reset()

    def reset(self) -> None:
        self.launched, self.made, self.asked, self.seconds = 0, 0, 0, 0.0

    def facts(self) -> dict[str, Any]:
        return {"compile": round(self.seconds, 2), "kernels": self.asked, "made": self.made}

    def _stands_for(self, module: Any, name: str, way: Callable[[Any], Any]) -> None:
        theirs = getattr(module, name)
        setattr(module, name, way(theirs))
        self.undone.append((module, name, theirs))

    def undo(self) -> None:
        for module, name, theirs in self.undone:
            setattr(module, name, theirs)

    def _counted(self, theirs: Any) -> Any:
        def counted(*args: Any, **named: Any) -> Any:
            out = theirs(*args, **named)
            self.launched += out is not None
            return out

        return counted

    def _timed(self, theirs: Any) -> Any:
        def timed(*args: Any, **named: Any) -> Any:
            begin = time.perf_counter()
            self.asked += 1
            try:
                built = theirs(*args, **named)
                self.made += not built.cached
            finally:
                self.seconds += time.perf_counter() - begin
            return built

        return timed


#: mistakes of this harness
_AMISS = re.compile(r"halted; None in sys\.modules|collecting\.<locals>")
NO_CUDA = "CUDA does not work in this process"
#: verdicts that another run of the same tests need not find again
SETTLED = ("passed", "not applicable")


def kept(path: str | None) -> list[dict[str, Any]]:
    """The lines of a file of verdicts: of each test its suite, verdict, reason, seconds; of each run that found some, `ran` and on what."""
    if not path or not Path(path).is_file():
        return []
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


def settled(path: str | None, suite: str, failed: bool = False) -> dict[str, dict[str, Any]]:
    """Of a suite's tests those whose verdict a file of verdicts has. failed: those that failed too, which another run would run again."""
    return {line["test"]: line for line in kept(path) if line.get("suite") == suite and not _AMISS.search(line["why"])
            and line["verdict"] in (*SETTLED, *(["failed"] if failed else []))}


def judged(report: Any, info: Any, launched: int) -> tuple[str, str]:
    """A verdict and its reason. report, info: pytest's; launched: how many calls reached a kernel."""
    text = str(report.longrepr or "")
    if report.outcome == "skipped":
        return "not applicable", "skips itself: " + re.sub(r"\s+", " ", text.rsplit("Skipped:", 1)[-1])[:100].strip("(')\" ")
    reached = bool(launched or adapters.calls)
    if report.outcome == "passed":
        parts = "; ".join(dict.fromkeys(adapters.partly))
        return ("passed", parts) if reached else ("not applicable", f"refused: {parts}" if parts else "reaches no kernel of fcgen's")
    said = refusal(text)
    if said is not None:
        known = next((why for begin, why in adapters.IN_GRAPHS.items() if adapters._here[0].startswith(begin)), said)
        return "not applicable", f"refused: {known if _IN_A_GRAPH in text else said}"
    why = f"{info.type.__name__}: {info.value}"[:600] if info else text[-600:]
    if "out of memory" in why:
        return "not reached", "out of memory, beside other processes"
    if not reached and re.search("CUDA error|re-initialize CUDA|AcceleratorError", why):
        return "not reached", f"{NO_CUDA}: {why.splitlines()[0][:100]}"
    if _AMISS.search(why):
        return "not reached", f"a mistake of this harness: {why.splitlines()[0][:100]}"
    if reached or (info and ours(info.traceback)) or _OURS.search(text):
        return "failed", why
    return "not applicable", f"fails before it calls fcgen: {why.splitlines()[0][:100]}"


def summary(found: dict[str, list[str]], beside: list[list[Any]]) -> dict[str, Any]:
    """Counts, reasons and failures. found: test -> verdict, reason, function; beside: function, reason, how many tests."""
    why = Counter(reason for verdict, reason, _ in found.values() if verdict == "not applicable")
    for _, reason, n in beside:
        why[reason] += n
    partly = Counter(reason for verdict, reason, _ in found.values() if verdict == "passed" and reason)
    rows = _counts(found, beside)
    counts = rows.pop("all")
    return {**{name: counts[name] for name in NAMES}, "not_applicable_because": dict(why.most_common()),
            "not_reached_because": dict(Counter(reason.split("\n")[0] for verdict, reason, _ in found.values()
                                                if verdict == "not reached").most_common()),
            "passed_but_for": dict(partly.most_common()), "by_function": {name: dict(row) for name, row in rows.items()},
            "failures": {test: reason for test, (verdict, reason, _) in found.items() if verdict == "failed"},
            "stopped_tests": [test for test, (verdict, *_) in found.items() if verdict == "stopped"]}


def amiss(path: str | None, suite: str) -> dict[str, dict[str, Any]]:
    """Of a suite's tests those that this harness broke."""
    return {line["test"]: {**line, "verdict": "not reached", "why": f"a mistake of this harness: {line['why'].splitlines()[0][:100]}"}
            for line in kept(path) if line.get("suite") == suite and _AMISS.search(line["why"])}


def times(ran: list[dict[str, Any]]) -> dict[str, Any]:
    """Where the seconds of tests went. ran: what their processes wrote."""
    total = lambda key: round(sum(line.get(key, 0) for line in ran), 1)
    slowest = sorted(ran, key=lambda line: -line.get("seconds", 0.0))[:5]
    middle = sorted(line.get("seconds", 0.0) for line in ran)
    return {"tests": len(ran), "seconds": total("seconds"), "median_seconds": middle[len(middle) // 2] if ran else None,
            "compile_seconds": total("compile"), "kernels_asked": total("kernels"), "kernels_made": total("made"),
            "slowest": [[line.get("seconds"), line.get("compile"), line["test"]] for line in slowest]}


def _counts(found: dict[str, list[str]], beside: list[list[Any]]) -> dict[str, Counter[str]]:
    rows: dict[str, Counter[str]] = defaultdict(Counter)
    for verdict, _, function in found.values():
        rows[function][verdict] += 1
    for function, _, n in beside:
        rows[function]["not applicable"] += n
    return {**dict(sorted(rows.items())), "all": sum(rows.values(), Counter())}


def table(found: dict[str, list[str]], beside: list[list[Any]]) -> str:
    """By test function, then the reasons and the failures."""
    rows = _counts(found, beside)
    width = max([len(name) for name in rows] + [10])
    out = [f"{'':{width}}  " + "  ".join(NAMES)]
    for name, counts in rows.items():
        out.append(f"{name:{width}}  " + "  ".join(f"{counts[n]:{len(n)}}" for n in NAMES))
    said = summary(found, beside)
    for title, key in (("not applicable because:", "not_applicable_because"), ("passed, but for a part:", "passed_but_for")):
        if said[key]:
            out += ["", title, *[f"{n:6}  {reason}" for reason, n in list(said[key].items())[:SHOWN]]]
    failed = [f"{test}: {reason[:160]!r}" for test, reason in said["failures"].items()]
    stopped = said["stopped_tests"]
    return "\n".join([*out, *(["", f"failed ({len(failed)}):", *failed[:SHOWN]] if failed else []),
                      *(["", f"stopped ({len(stopped)}):", *stopped[:SHOWN]] if stopped else [])])
