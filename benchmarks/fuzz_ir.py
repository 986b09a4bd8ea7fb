"""IR text that nobody would write, from files of the pipeline: every outcome is a result or an FcError, soon, and no string becomes code.

    python -m benchmarks.fuzz_ir [--count 20000] [--first 0] [--seconds 3000] [--only N] [--json FILE]

An input is a pure function of its number (`--only N` runs one again and shows it). It goes the way of `fcgen dump FILE --stage cuda`: read
from a file, parsed, verified, lowered where it is tile IR, checked against the budgets, printed as CUDA C++. A fault is any other
exception, more than 10 seconds of CPU, a dead process, and text of the file (`MARK`) in the CUDA text outside of a comment.
With --json a run is added to those of the file: a campaign may be split over calls (`--first`, `--count`), each recorded with its commit.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from .environment import facts, without_folders
from .pool import write_json

LIMIT, WAIT = 10.0, 300.0  # seconds of CPU for one input; and of waiting, on a machine that has other work
MARK = "FUZZ@MARK"  # no name of anything: as soon as a name is made of it, it is another one
ROOT = Path(__file__).parents[1]

# ---- what is mutated ---------------------------------------------------------------------------------------------------

#: (example, target, fields of the schedule): small kernels that together have most ops
KERNELS: list[tuple[str, str, dict[str, Any]]] = [
    ("softmax", "sm_89", {}),
    ("gemm", "sm_89", {}),
    ("gemm", "sm_90a", {"copy": "tma", "math": "wgmma", "epilogue": "tma", "persistent": "dynamic"}),
    ("linear_attention", "sm_89", {}),
    ("sigmoid_attention", "sm_90a", {"copy": "tma", "math": "wgmma"}),
    ("gemm", "sm_89", {"math": "wmma"}),
]
STAGES = ("split_loops", "select", "sync", "sync", "sync", "sync")


@lru_cache(maxsize=1)
def corpus() -> list[str]:
    """Texts of the kernels above as traced and after some of the passes."""
    import importlib
    from dataclasses import replace

    import fcgen as fc
    from fcgen.build import compiler
    from fcgen.ir.text import print_kernel

    if str(ROOT / "examples") not in sys.path:
        sys.path.insert(0, str(ROOT / "examples"))
    out: list[str] = []
    for name, arch, fields in KERNELS:
        example = importlib.import_module(name).example
        program = fc.compile(example.spec, target=arch, schedule=replace(example.schedule, **fields), **example.binding)
        out += 2 * [print_kernel(program.tile)]

        def keep(stage: str, kernel: Any, out: list[str] = out) -> None:
            out.extend(STAGES.count(stage) * [print_kernel(kernel)])

        compiler.lower(program.tile, program.schedule, program.target, trace=keep)
    # a path in the text would be this machine's
    return [re.sub(r'source "[^"]*/', 'source "', text) for text in out]


# ---- mutations ---------------------------------------------------------------------------------------------------------

TOKEN = re.compile(r'"(?:[^"\\\n]|\\.)*"|%?[\w.]+(?:@\d+)?|\S')
NUMBERS = ("0", "1", "-1", "2", "3", "7", "16", "63", "64", "100", "255", "1024", "65536", "2147483647", "2147483648", "-2147483648",
           "4294967296", "9" * 30, "9" * 5000, "0.5", "1e400", "inf", "-inf", "nan", "1e-46", "true", "none", '"4"', "()", "(1, 2)", "x4")
HOSTILE = (f"full\\nif (threadIdx.x == 0) {MARK} = 1;", f'x\\n#include \\"{MARK}\\"\\n', f"*/ {MARK}; /*", f"{MARK}\\\\", f"a{MARK} b",
           f"{MARK}\\u2028{MARK}", f"??/\\n{MARK}", f"\\u0000{MARK}", f"\\u001b]0;{MARK}\\u0007", f"\\ud800{MARK}", f"{MARK}(", f"é{MARK}",
           f"\\r{MARK}();\\r", f'\\");{MARK}(\\"', "", " ", "__syncthreads();" + MARK, MARK * 1000, f"\\u202e{MARK}", f"\\f\\u000b{MARK}")
WORDS = ("threadIdx", "int", "smem", "warp", "lane", "group", "counter", "NAN", "INF", "main", "default", "true", "for", "yield", "asm",
         "f32", "i32", "i1", "f16", "bf16", "i64", "f64", "synced", "allocated", "placed", "sm_89", "sm_90a", "sm_99", "dynamic", MARK, "é")


def shape_of(word: str) -> str:
    """The kind of a word: what may stand where it stands."""
    return re.sub(r"\d+", "0", word) if (word[:1] not in "%" and not word[:1].isalpha()) or "@" in word else "%" if word[:1] == "%" else "a"


def one_word(r: random.Random, text: str) -> str:
    """A word becomes another one."""
    found = list(TOKEN.finditer(text))
    if not found:
        return text
    t = r.choice([m for m in found if m.group() not in "{}()[]=,:|%"] or found)
    old = t.group()
    kind = r.random()
    if old[:1] == '"':
        new = f'"{r.choice(HOSTILE)}"'
    elif re.fullmatch(r"-?\d+", old) and kind < 0.85:
        new = r.choice(NUMBERS) if kind < 0.3 else str(int(old[:12]) + r.choice((-8, -1, 1, 2, 8, 16)))
    elif kind < 0.8:
        new = r.choice([m.group() for m in found if shape_of(m.group()) == shape_of(old)])
    elif kind < 0.83:
        new = f'"{r.choice(HOSTILE)}"'
    elif kind < 0.86:
        new = r.choice(NUMBERS)
    elif kind < 0.9:
        new = r.choice(WORDS)
    elif kind < 0.95:
        new = ""
    else:
        new = old + " " + old
    return text[:t.start()] + new + text[t.end():]


def type_word(r: random.Random, text: str) -> str:
    """A part of a type or layout becomes another one, everywhere in the text."""
    found = list(re.finditer(r"\b[wlr]\d+@\d+|\[[\d,]+\]|\b(?:f16|f32|bf16|i32|i1)\b|\b\d+x\d+\b| x\d+"
                             r"|(?:panel|swizzle|pad|count|warps|regs|cluster) \d+", text))
    if not found:
        return one_word(r, text)
    t = r.choice(found)
    old = t.group()
    like = [m.group() for m in found if re.sub(r"\d", "", m.group()) == re.sub(r"\d", "", old)]
    scaled = lambda m: str(int(m[0]) * r.choice((1, 2, 3)) // r.choice((1, 2, 4)))
    new = r.choice(like) if r.random() < 0.5 else re.sub(r"(?<![a-z])\d+|(?<=[wlrx])\d+", scaled, old)
    if r.random() < 0.5:
        return text[:t.start()] + new + text[t.end():]
    return re.sub(rf"(?<![\w@]){re.escape(old)}(?![\w@])", lambda m: new, text)


def op_word(r: random.Random, text: str) -> str:
    """An op becomes another op, an attribute's value another one."""
    from fcgen.ir.ops import OPS
    found = [m for m in TOKEN.finditer(text) if m.group() in OPS] or list(TOKEN.finditer(text))
    t = r.choice(found)
    like = [k for k in OPS if t.group() in OPS and list(OPS[k].attrs) == list(OPS[t.group()].attrs)]
    return text[:t.start()] + r.choice(like if like and r.random() < 0.8 else list(OPS)) + text[t.end():]


def attribute(r: random.Random, text: str) -> str:
    """A value after `=`: of another size, type or length."""
    found = list(re.finditer(r"(?<= = )(\([^()\n]*\)|\"[^\"\n]*\"|[^\s,}()]+)(?=[,}\n])", text))
    if not found:
        return one_word(r, text)
    t = r.choice(found)
    new = r.choice((r.choice(NUMBERS), f'"{r.choice(HOSTILE)}"', r.choice(WORDS), r.choice(found).group(), f"({t.group()}, {t.group()})",
                    "()", "(" + "(" * 40 + ")" * 40 + ")", "{panel 64}", "{w4@1 | l8@4}", "{wmma acc 4x1}"))
    return text[:t.start()] + new + text[t.end():]


def lines(r: random.Random, text: str) -> str:
    """Lines deleted, doubled, swapped, moved."""
    ls = text.split("\n")
    i, j = r.randrange(len(ls)), r.randrange(len(ls))
    what = r.randrange(5)
    if what == 0:
        del ls[i]
    elif what == 1:
        ls.insert(i, ls[i])
    elif what == 2:
        ls[i], ls[j] = ls[j], ls[i]
    elif what == 3:
        ls.insert(j, ls.pop(i))
    else:
        del ls[min(i, j):max(i, j)]
    return "\n".join(ls)


def brackets(r: random.Random, text: str) -> str:
    """Something in brackets or between commas goes, or comes twice."""
    found = list(re.finditer(r"\{[^{}\n]*\}|\([^()\n]*\)|\[[^\[\]\n]*\]|, [^,\n]+", text))
    t = r.choice(found) if found else re.match("", text)
    assert t is not None
    new = r.choice(("", t.group() * 2, r.choice(found).group() if found else ""))
    return text[:t.start()] + new + text[t.end():]


def characters(r: random.Random, text: str) -> str:
    """Characters flipped, dropped and put in: controls, NUL, surrogates' neighbours, other scripts."""
    for _ in range(r.randrange(1, 6)):
        i = r.randrange(len(text) + 1)
        new = r.choice(("", "\0", "\x1b", "\r", "\t", "\x85", "\u2028", "\ufeff", "é", "\U0001f600", '"', "\\", "{", "}", "%", "@", "$",
                        "#", "//", chr(r.randrange(1, 0x300))))
        text = text[:i] + new + text[i + r.randrange(3):]
    return text


def cut(r: random.Random, text: str) -> str:
    """The text ends early, or goes on with another one."""
    i = r.randrange(len(text))
    other = r.choice(corpus())
    return text[:i] if r.random() < 0.5 else text[:i] + other[r.randrange(len(other)):]


def strings(r: random.Random, text: str) -> str:
    """Hostile strings in every place that takes one."""
    hostile = lambda: f'"{r.choice(HOSTILE)}"'
    what = r.randrange(7)
    if what == 0:
        return re.sub(r"(?<=kernel )\S+", lambda m: hostile(), text, count=1)
    if what == 1:
        return re.sub(r"^(meta \w+ = ).*$", lambda m: m[1] + hostile() if r.random() < 0.3 else m[0], text, flags=re.M)
    if what == 2:
        return re.sub(r"^(source ).*$", lambda m: m[1] + hostile() + " as " + hostile(), text, flags=re.M)
    if what == 3:
        return re.sub(r"((?:label|part|hint|reduce|instr|end|fn|to|dtype) = )[\w.]+",
                      lambda m: m[1] + hostile() if r.random() < 0.2 else m[0], text)
    if what == 4:
        name = r.choice(re.findall(r"%\w+", text) or ["%x"])
        new = "%" + r.choice([w for w in WORDS if w.isidentifier()])
        return re.sub(re.escape(name) + r"(?![\w.])", new, text)
    if what == 5:
        dim = r.choice(re.findall(r"\[([A-Z]\w*)[,\]]", text) or ["M"])
        return re.sub(rf"(?<![\w%]){dim}(?![\w.])", lambda m: hostile(), text)
    return re.sub(r"(?<=role )\S+", lambda m: hostile(), text, count=1)


def nested(r: random.Random, text: str) -> str:
    """Regions, tuples and lists, deep or long."""
    n = r.choice((10, 60, 200, 3000, 50000))
    what = r.randrange(6)
    if what == 0:
        return text.replace("meta ", "meta deep = " + "(" * n + ")" * n + "\nmeta ", 1)
    if what == 1:
        return _inside(text, "".join("if %go {\n" for _ in range(n)) + "yield\n" + "".join("} else {\nyield\n}\n" for _ in range(n)),
                       "%go = const {value = true, dtype = i1} : i1\n")
    if what == 2:
        return _inside(text, "".join(f"%x{k} = add %x{k - 1}, %x{k - 1} : i32\n" for k in range(1, min(n, 5000))),
                       "%x0 = const {value = 1, dtype = i32} : i32\n")
    if what == 3:
        return text.replace("meta ", "meta long = (" + "1, " * n + ")\nmeta ", 1)
    if what == 4:
        return text + "{" * n
    return re.sub(r"\{w", "{" + "r2@1 " * n + "w", text, count=1)


def _inside(text: str, body: str, before: str = "") -> str:
    at = re.search(r"^(?:role .*)?\{\n", text, flags=re.M)
    return text[:at.end()] + before + body + text[at.end():] if at else text + body


def huge(r: random.Random, text: str) -> bytes:
    """50 MB of something."""
    n = 50_000_000
    kind = r.randrange(7)
    head = text.encode()
    if kind == 0:
        return head + b"#" * n
    if kind == 1:
        return b'tile kernel "' + b"a" * n + b'"\n{\n}\n'
    if kind == 2:
        line = b"  %x = add %a, %a : i32\n"
        return head[:-2] + line * (n // len(line)) + b"}\n"
    if kind == 3:
        return b"\n" * n
    if kind == 4:
        return b"tile kernel k\nmeta a = " + b"(" * n
    if kind == 5:
        return b"tile kernel k\nmeta a = " + b"9" * n
    return r.randbytes(1000) * (n // 1000)


def raw(r: random.Random, text: str) -> bytes:
    """Bytes that are no UTF-8, or another encoding of the same."""
    data = bytearray(text.encode())
    what = r.randrange(4)
    if what == 0:
        for _ in range(r.randrange(1, 9)):
            data[r.randrange(len(data))] = r.randrange(256)
        return bytes(data)
    if what == 1:
        return text.encode(r.choice(("utf-16", "utf-32", "utf-8-sig")))
    if what == 2:
        return r.randbytes(r.randrange(3000))
    return text.encode() + r.randbytes(5)


MUTATIONS: list[tuple[Callable[[random.Random, str], str | bytes], int]] = [
    (one_word, 32), (attribute, 18), (type_word, 12), (op_word, 10), (lines, 10), (brackets, 4), (strings, 8), (characters, 2), (cut, 1),
    (nested, 1), (raw, 2)]


def make(number: int) -> tuple[str, bytes]:
    """(kind of mutation, the file)."""
    r = random.Random(number)
    text = r.choice(corpus())
    if number % 500 == 499:
        return "huge", huge(r, text)
    fn = r.choices([m for m, _ in MUTATIONS], [w for _, w in MUTATIONS])[0]
    out: str | bytes = fn(r, text)
    while isinstance(out, str) and r.random() < 0.15:
        out = one_word(r, out)
    return fn.__name__, out.encode("utf-8", "surrogatepass") if isinstance(out, str) else out


# ---- what becomes of it ------------------------------------------------------------------------------------------------


class Late(BaseException):
    pass


def code_of(cuda: str) -> str:
    """CUDA text without comments, as a compiler reads it: lines that end in a backslash are joined first."""
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", re.sub(r"\\[ \t]*\r?\n", "", cuda), flags=re.S)


def outcome(path: Path) -> str:
    """What a file comes to: the code of an error, or "cuda". Raises what is a fault."""
    from fcgen.build import compiler
    from fcgen.cli.specs import find
    from fcgen.errors import FcError, visible

    try:
        found = find(str(path))
        program = found.program("sm_89" if found.text.startswith("tile") else None, (), None)
        cuda = compiler.to_cuda(program.machine, program.target)
        code = code_of(cuda.text)
        where = re.search(rf".*(?:{MARK}|[^\n\t -~]).*", code)
        if where is not None or any(not c.isprintable() and c not in "\n\t" for c in cuda.text):
            raise AssertionError(f"text of the file in the CUDA text: {where[0] if where else 'control characters'!r}")
        return "cuda"
    except FcError as e:
        text = e.render()
        if "internal error" in text:
            raise
        if visible(text) != text:
            raise AssertionError("control characters in a message") from e
        return e.code


def one(number: int, folder: Path, limit: float = LIMIT) -> dict[str, Any]:
    """kind, outcome, seconds; and `fault`, the end of a traceback, where there is one."""
    kind, data = make(number)
    path = folder / f"{number}.fc"
    path.write_bytes(data)
    begin, waited = time.process_time(), time.monotonic()
    row: dict[str, Any] = {"number": number, "kind": kind}

    def late(*_: Any) -> None:
        raise Late

    timers = {signal.ITIMER_PROF: (signal.SIGPROF, limit), signal.ITIMER_REAL: (signal.SIGALRM, WAIT)}
    before = [signal.signal(s, late) for s, _ in timers.values()]
    for timer, (_, most) in timers.items():
        signal.setitimer(timer, most)
    try:
        row["outcome"] = outcome(path)
    except Late:
        row.update(outcome="late", fault="".join(without_folders(traceback.format_exc()).splitlines(True)[-12:]))
    except BaseException as e:
        if isinstance(e, KeyboardInterrupt):
            raise
        row.update(outcome=type(e).__name__, fault="".join(without_folders(traceback.format_exc()).splitlines(True)[-7:]))
    finally:
        for (timer, (s, _)), handler in zip(timers.items(), before):
            signal.setitimer(timer, 0)
            signal.signal(s, handler)
        path.unlink()
    row["seconds"], row["waited"] = time.process_time() - begin, time.monotonic() - waited
    if row["seconds"] > limit and "fault" not in row:
        row["fault"] = f"{row['outcome']} after {row['seconds']:.1f} s"
    return row


def run(numbers: range, seconds: float = float("inf"), show: Callable[[dict[str, Any]], None] = lambda row: None) -> list[dict[str, Any]]:
    """Rows of these inputs, in one process."""
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for n in numbers:
            if time.monotonic() > end:
                break
            rows.append(one(n, Path(folder)))
            show(rows[-1])
    return rows


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    slowest = max(rows, key=lambda r: r["seconds"], default={"seconds": 0.0})
    return {"inputs": len(rows), "kinds": dict(Counter(r["kind"] for r in rows)), "outcomes": dict(Counter(r["outcome"] for r in rows)),
            "slowest_s": round(slowest["seconds"], 2), "faults": [r for r in rows if "fault" in r]}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no new input after that long")
    parser.add_argument("--only", type=int, help="run this input and show it")
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args(argv)
    if args.only is not None:
        kind, data = make(args.only)
        sys.stdout.write(data[:100_000].decode("utf-8", "backslashreplace"))
        print(kind, run(range(args.only, args.only + 1)))
        return 0
    show = lambda row: print(json.dumps(row), flush=True) if "fault" in row else None
    rows = run(range(args.first, args.first + args.count), args.seconds, show)
    found = summary(rows)
    old = json.loads(Path(args.json).read_text())["runs"] if args.json and Path(args.json).exists() else []
    runs = [*old, {"first": args.first, **found, "environment": facts()}]
    write_json(args.json, {"part": "fuzz_ir", "inputs": sum(r["inputs"] for r in runs), "faults": sum(len(r["faults"]) for r in runs),
                           "runs": runs})
    print({k: v for k, v in found.items() if k != "faults"}, len(found["faults"]), "faults")
    return bool(found["faults"])


if __name__ == "__main__":
    sys.exit(main())
