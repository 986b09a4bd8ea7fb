"""Roles in text: the block's warps are told apart once, at the top; each role is a branch of its own with its own names.

A role takes whole warpgroups, in the kernel's order. `warp` is the warp's number within its role, as layouts count. A role without
fragments is one thread's work. Every branch starts by giving registers away or taking them (setmaxnreg); the barriers are initialised
before.
"""

from __future__ import annotations

import re
from dataclasses import replace

from ...errors import FcError, Loc
from ...ir.core import Block, Kernel, Role, Value, walk, walk_kernel
from ...ir.named_barriers import of_role
from ...ir.registers import at_launch
from ...ir.rings import check_cursors, walked
from ...ir.target import Target
from ...ir.types import Buffer, Frag, Mbarrier, Pending, Scalar
from .emit import Emitter
from .flow import emit_block
from .grid import grid
from .names import comment, words_in
from .text import Segment, X
from .wgmma import delayed, fences

CONSTANT = re.compile(r"const [\w ]+ (\w+) = |const \w+\* (\w+) = ")


def prepare(em: Emitter) -> None:
    """What is known before a role's first op: scalar parameters and the addresses of buffers with one slot."""
    kernel = em.kernel
    for p in kernel.params:
        if isinstance(p.type, Scalar):
            em.scalars[p] = X(em.pname[p])
    for b in kernel.buffers:
        if isinstance(b.type, Buffer) and b.type.slots == 1 and _reads_address(kernel, b):
            em.scalars[b] = em.buffer_base(b)
    for role in kernel.roles:
        em.fences.update(fences(role.body))
        em.delayed.update(delayed(em))
    em.walked = walked(kernel)


def _reads_address(kernel: Kernel, b: Value) -> bool:
    return any(b in op.operands and op.kind != "slot" and not op.kind.startswith(("wmma", "wgmma")) for op in walk_kernel(kernel))


def print_roles(kernel: Kernel, target: Target, written: set[Value]) -> Emitter:
    """The whole kernel's body; returns the emitter that holds it."""
    threads = kernel.warps * 32
    for role in kernel.roles:
        check_cursors(role.body)
    branches = _branches(kernel)
    main = Emitter(kernel, target)
    main.written |= written
    w = main.w
    w.line(f"const uint32_t smem_base = {main.fn('opaque')}(static_cast<uint32_t>(__cvta_generic_to_shared(smem)));")
    w.line("const int group = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);  // warpgroup: known to be the same in all lanes")
    setup = _barriers(main)
    first, parts = 0, []
    for n, role in enumerate(kernel.roles):
        em = Emitter(replace(kernel, roles=(role,)), target)
        em.share(main)
        em.one_thread = _is_one_thread(role)
        em.role_barrier = of_role(n)
        parts.append(_role(em, role, first))
        main.counter |= em.counter
        first += role.warps
    launch, first = at_launch(target, threads, kernel.meta.get("min_blocks", 1) or 1), 0
    for n, branch in enumerate(branches):
        last = n == len(branches) - 1
        first += sum(role.warps for role in branch)
        test = f"group < {first // 4}"
        head = f"{'} else ' if n else ''}{'{' if last and n else f'if ({test}) {{'}" if len(branches) > 1 else "{"
        if n:
            w.close("")
            w.root.items.pop()
        w.open(f"{head}  {comment(', '.join(f'role {role.name}: {role.warps} warps' for role in branch))}")
        if branch[0].regs and len(kernel.roles) > 1:
            kind = "dec" if branch[0].regs <= launch else "inc"
            w.line(f"{main.fn(f'setmaxnreg_{kind}')}<{branch[0].regs}>();")
        for indent, text, loc in (line for _ in branch for line in parts.pop(0)):
            w.indent += indent
            w.loc = loc
            w.line(text)
            w.indent -= indent
    w.loc = None
    w.close()
    for name in main.maps.values():
        setup.line(f"{main.fn('tensormap_prefetch')}({name});")
    return main


def _is_one_thread(role: Role) -> bool:
    return not any(isinstance(v.type, (Frag, Pending)) for o in walk(role.body) for v in o.results)


def _branches(kernel: Kernel) -> list[list[Role]]:
    """Roles by the warpgroups that they take: several that are one thread each may have one together, and then as many registers."""
    if len(kernel.roles) == 1:
        return [[kernel.roles[0]]]
    out: list[list[Role]] = []
    for role in kernel.roles:
        if out and sum(r.warps for r in out[-1]) % 4:
            out[-1].append(role)
        else:
            out.append([role])
    for branch in out:
        if sum(r.warps for r in branch) % 4 or (len(branch) > 1 and not all(map(_is_one_thread, branch))):
            raise FcError("compile/unsupported", f"role {branch[-1].name} is not made of whole warpgroups", got=branch[-1].warps,
                          expected="a multiple of 4 warps, or one thread beside another")
        if len({r.regs for r in branch}) > 1:
            raise FcError("compile/unsupported", f"roles {', '.join(r.name for r in branch)} share a warpgroup, and so its registers",
                          expected=branch[0].regs, got=branch[-1].regs)
    return out


def _barriers(em: Emitter) -> Segment:
    """Returns the place for what one thread does before all else."""
    w = em.w
    bars = [b for b in em.kernel.buffers if isinstance(b.type, Mbarrier)]
    if not bars:
        return w.mark()
    w.open("if (threadIdx.x == 0) {")
    setup = w.mark()
    for b in bars:
        each, at = (f"for (int i = 0; i < {b.type.slots}; ++i) ", " + 8 * i") if b.type.slots > 1 else ("", "")
        w.line(f"{each}{em.fn('mbar_init')}(smem_base + {em.offset(b)}{at}, {b.type.count});")
    w.line(f"{em.fn('mbar_init_fence')}();")
    w.line(f"{em.fn('proxy_fence')}();")
    w.close()
    w.line("__syncthreads();" if em.kernel.cluster == 1 else f"{em.fn('cluster_sync')}();")
    return setup


def _role(em: Emitter, role: Role, first: int) -> list[Line]:
    """The lines of a role's body, one indent in."""
    start = em.w.mark()
    if em.one_thread:
        em.w.open(f"if (threadIdx.x == {first * 32}) {{  // one thread")
    print_body(em, role.body, start, first)
    if em.one_thread:
        em.w.close()
    return [(indent - 1, t, loc) for indent, t, loc in used_lines(em)]


def print_body(em: Emitter, body: Block, start: Segment | None = None, first: int = 0) -> None:
    """A block's ops, and in front of them, or at `start`, who a thread is, as far as they ask. first: the warps before the role's."""
    start = start or em.w.mark()
    prepare(em)
    if any(a in em.plan.users for a in body.args):
        grid(em)
    emit_block(em, body)
    words = words_of(used_lines(em))
    if "smem_base" in words and not em.role_barrier:  # in front of roles it stands already
        start.line("const uint32_t smem_base = static_cast<uint32_t>(__cvta_generic_to_shared(smem));")
    if "warp" in words:
        less = f" - {first}" if first else ""
        start.line(f"const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0){less};  // known to be the same in all lanes")
    if "lane" in words:
        start.line("const int lane = threadIdx.x % 32;")


Line = tuple[int, str, Loc | None]


def words_of(lines: list[Line]) -> set[str]:
    """The identifiers of lines, comments left out."""
    return {w for _, t, _ in lines for w in words_in(t)}


def used_lines(em: Emitter) -> list[Line]:
    """What was written, without constants that nothing in their block reads: what was folded into an address leaves its scalar behind."""
    lines, kept = list(em.w.root.flat()), list[Line]()
    nearest: dict[str, int] = {}  # word -> the first line, of those behind this one, that is kept and has it
    outer: list[int] = []  # lines behind this one, each further out than all before it: the top is where its block has ended
    for n in range(len(lines) - 1, -1, -1):
        indent, t, _ = lines[n]
        while outer and lines[outer[-1]][0] >= indent:
            outer.pop()
        found = CONSTANT.match(t)
        if found is None or nearest.get(found[1] or found[2], len(lines)) < (outer[-1] if outer else len(lines)):
            kept.append(lines[n])
            nearest.update(dict.fromkeys(words_in(t), n))
        outer.append(n)
    return kept[::-1]
