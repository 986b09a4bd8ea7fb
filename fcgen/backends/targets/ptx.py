"""Records of instructions whose text follows from what they take: one PTX instruction, its operands in the order of the parameters."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from ...ir.target import Instr

Effect = Callable[..., np.ndarray]
#: C++ type of a parameter -> the constraint of the register that it comes in; pointers are addresses
CONSTRAINTS = {"int": "r", "uint32_t": "r", "float": "f", "double": "d", "long long": "l", "uint64_t": "l", "unsigned short": "h"}


def operands(signature: str) -> str:
    """The parameters of a device function as inputs of an `asm`: those of its template are numbers in the text."""
    template, rest = re.fullmatch(r"(?:<(.*?)>)? ?(.*)", signature).groups()  # type: ignore[union-attr]
    out = [f'"n"({p.split()[-1]})' for p in (template or "").split(", ") if p]
    for p in (p for p in rest.split(", ") if p):
        ctype, name = re.fullmatch(r"(.*?)(\w+)", p).groups()  # type: ignore[union-attr]
        out.append(f'"l"(&{name})' if "&" in ctype else f'"{CONSTRAINTS.get(ctype.strip(), "l")}"({name})')
    return ", ".join(out)


def numbered(n: int, start: int = 0) -> str:
    """`%0, %1, ...`: n operands of an `asm`."""
    return ", ".join(f"%{start + i}" for i in range(n))


def each(constraint: str, n: int, text: str) -> str:
    """n operands with their values; text: of the one with number {i}."""
    return ", ".join(f'"{constraint}"({text.format(i=i)})' for i in range(n))


def group(operands: str) -> str:
    """Registers of a vector; one stands by itself."""
    return f"{{{operands}}}" if "," in operands else operands


def fn(name: str, signature: str, body: str, doc: str, returns: str = "uint32_t", effect: Effect | None = None) -> Instr:
    """A fixed idiom."""
    return Instr(name, signature, body, doc, returns=returns, effect=effect)


def pure(name: str, signature: str, text: str, doc: str, returns: str = "float") -> Instr:
    """An instruction that makes its first operand of the others: equal calls are joined."""
    out = CONSTRAINTS[returns]
    return fn(name, signature, f'{returns} y;\n    asm("{text}" : "={out}"(y) : {operands(signature)});\n    return y;', doc, returns)


def reads(name: str, signature: str, text: str, doc: str, returns: str) -> Instr:
    """As `pure`, of what may be another value each time: it stays where it is."""
    ins = operands(signature)
    said = f'"{text}" : "={CONSTRAINTS[returns]}"(y) {f": {ins} " if ins else ":"}: "memory"'
    return fn(name, signature, f"{returns} y;\n    asm volatile({said});\n    return y;", doc, returns)


def does(name: str, signature: str, text: str, doc: str) -> Instr:
    """An instruction that reaches memory, or orders what does: it stays where it is."""
    ins = operands(signature)
    return fn(name, signature, f'asm volatile("{text}" {f":: {ins} :" if ins else ":::"} "memory");', doc, "void")
