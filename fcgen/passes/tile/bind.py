"""bind: what a schedule says is looked up once, in the program as it was traced.

In: tile IR. Out: the same. Every load and dot has a `site`, a word of its own that all its copies keep, and carries what the schedule
decides about it: a dot its instruction family (`math`), over which warps it is spread (`grid`), whether it runs `late`, `early` or
`behind`, makes a row sum too (`sums`) and takes its left operand from registers (`regs`); a load that `stages` names, its `stages`.
Guaranteed: no later pass asks what a value is called or where an op comes from. A name that nothing here has is refused, with those that
there are; so is a field that the other fields or the target leave without effect. What only a later pass can see of that, it refuses
itself, in the same words (`without_effect`).

A dot is called by the value that it makes, or by the first named value that it alone flows into; a load by its value, or after its tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from ...errors import FcError
from ...ir.access import Access
from ...ir.core import Kernel, Op, Value, uses, walk, walk_kernel
from ...ir.rewrite import edited, map_bodies
from ...ir.schedule import Schedule
from ...ir.target import Target
from ...ir.text import base_name
from ..facts.common import loaded_name, without_effect

#: field that names dots -> the attribute that tells a dot
OF_DOTS = {"late": "late", "early": "early", "behind": "behind", "rolling": "rolling", "ones": "sums", "regs_a": "regs", "made": "made"}


def run(kernel: Kernel, schedule: Schedule, target: Target) -> Kernel:
    _check_tiles(kernel, schedule)
    _check_fields(schedule, target)
    names = _names(kernel)
    _check_names(names, schedule, target)
    sites = _sites(names)

    def bound(op: Op) -> Op:
        return op.with_attrs(**_decided(op, names[op], schedule, target), site=sites[op]) if op in names else op

    return map_bodies(kernel, lambda body: edited(body, bound))


# ---- names ---------------------------------------------------------------------------------------------------------------


def _names(kernel: Kernel) -> dict[Op, str]:
    """What the schedule may call each dot and load."""
    out: dict[Op, str] = {}
    for role in kernel.roles:
        readers = uses(role.body)
        for op in walk(role.body):
            if op.kind == "load" and op.result.type.shape:
                out[op] = base_name(op.get("site", "")) or loaded_name(op)
            elif op.kind == "dot":
                out[op] = base_name(op.get("site", "")) or _flows_into(op.result, readers) or "dot"
    return out


def _flows_into(v: Value, readers: Mapping[Value, list[Op]]) -> str:
    while not v.name:
        us = [u for u in readers.get(v, ()) if u.results]
        if len(us) != 1 or len(us[0].results) != 1:
            break
        v = us[0].result
    return v.name


def _sites(names: Mapping[Op, str]) -> dict[Op, str]:
    out: dict[Op, str] = {op: op["site"] for op in names if op.get("site")}
    taken = set(out.values())
    for op, name in names.items():
        if op not in out:
            site, n = name, 0
            while site in taken:
                n += 1
                site = f"{name}.{n}"
            out[op] = site
            taken.add(site)
    return out


def multiplies(dot: Op, family: str, target: Target) -> bool:
    """Whether a family of instructions takes a dot's operands. Multiply-adds take all."""
    dtype = dot.operands[0].type.dtype
    return family == "fma" or dtype.bits == 16 or (dtype.bits == 8 and target.matrix_instr(family, dtype.name) is not None)


def _check_names(names: Mapping[Op, str], schedule: Schedule, target: Target) -> None:
    dots = {name: op for op, name in names.items() if op.kind == "dot"}
    loads = {name: op for op, name in names.items() if op.kind == "load"}
    for field in OF_DOTS:
        _known(field, getattr(schedule, field), dots, "dot")
    _known("stages", _keys(schedule.stages), loads, "load")
    _known("math", _keys(schedule.math), dots, "dot")
    _known("grid", _keys(schedule.grid), dots, "dot")
    for name, grid in schedule.grid:
        family = _decided(dots[name], name, schedule, target)["math"]
        warps = schedule.makers if name in schedule.made else schedule.warps
        units = warps // 4 if family == "wgmma" else warps
        if family == "fma":
            raise without_effect("grid", f"%{name} is made by multiply-adds, whose lanes lie along rows and columns", got=grid,
                                 loc=dots[name].loc)
        if units % (grid[0] * grid[1]) or (family == "wmma" and units != grid[0] * grid[1]):
            what = "warpgroups" if family == "wgmma" else "warps"
            raise FcError("compile/schedule", f"Schedule.grid: %{name} is not spread over so many {what}", expected=f"rows x columns that "
                          f"divide {units} {what}", got=grid, loc=dots[name].loc,
                          hint=None if family == "wmma" else "where they are fewer, the others hold copies")
    if schedule.early and schedule.persistent == "dynamic":  # (64 x 128, three slots, l2=32, H100; neither text nor simulator shows why)
        raise FcError("compile/schedule", "Schedule.early: products ahead of tiles that blocks claim are not known to be right",
                      got="dynamic", expected='persistent="static" or "none"', hint="such a kernel gave a wrong sum once, and never again")
    ahead = next((name for name in schedule.early if name in schedule.made), None)
    if ahead is not None:  # the other warps let go of its tile when they have issued a product of what follows from this one's
        raise FcError("compile/schedule", f"Schedule.early: %{ahead} is the makers', whose tiles the other warps free an iteration later",
                      loc=dots[ahead].loc, expected="a product of the other warps", got=f"{ahead}, made={'+'.join(schedule.made)}",
                      hint="makers run ahead of the other warps without that")
    for field in ("early", "behind", "rolling", "made"):
        for name in getattr(schedule, field):
            if (family := _decided(dots[name], name, schedule, target)["math"]) != "wgmma":
                why = "is no product of a warpgroup" if field == "made" else "waits for its result"
                raise without_effect(field, f"%{name} {why}", expected='a dot made by wgmma', got=f"{name} by {family}", loc=dots[name].loc)
    able = [name for name, op in dots.items() if multiplies(op, schedule.math_of(name), target)]
    for name in _keys(schedule.math):
        if name not in able:
            raise without_effect("math", f"the operands of %{name} are {dots[name].operands[0].type.dtype}", expected="fma",
                                 got=schedule.math_of(name), loc=dots[name].loc)
    if schedule.math != "mma" and not able and not _keys(schedule.math):
        raise without_effect("math", f"the program has no dot{' of operands that it takes' if dots else ''}", got=schedule.math)


def _keys(value: Any) -> tuple[str, ...]:
    return tuple(name for name, _ in value) if isinstance(value, tuple) else ()


def _known(field: str, asked: Iterable[str], there: Mapping[str, Op], what: str) -> None:
    for name in asked:
        if name not in there:
            near = get_close_matches(name, there, 1)
            raise FcError("compile/schedule", f"Schedule.{field} names {name}, and no {what} is called so", got=name,
                          expected=", ".join(sorted(there)) or f"no name: the program has no {what}",
                          hint=f"did you mean {near[0]}?" if near else f"a {what} is called by the variable that it makes")


# ---- fields --------------------------------------------------------------------------------------------------------------


def _check_tiles(kernel: Kernel, schedule: Schedule) -> None:
    """IR has its tile sizes already: the schedule may repeat them."""
    loops = {o["label"]: o["tile"] for o in walk_kernel(kernel) if o.kind == "for" and o.get("label") and o.get("tile")}
    axes = {a.tile for a in kernel.grid}
    axes |= {a.size for op in walk_kernel(kernel) if op.kind in ("load", "store") for a in Access.of(op).runs if a.is_run}
    for name, n in schedule.tiles:
        if loops.get(name, n) != n or (name not in loops and n not in axes):
            there = [*(f"{k}: {v}" for k, v in loops.items()), *(f"{a.name}: {a.tile}" for a in kernel.grid if a.tile > 1)]
            raise without_effect("tiles", "the program has its tile sizes already", expected=", ".join(there) or "none",
                                 got=f"{name}: {n}", hint="trace the spec again with these tiles")


def _check_fields(s: Schedule, target: Target) -> None:
    """Fields that need each other, or something of the target."""
    wgmma = "wgmma" in (s.math, *(dict(s.math).values() if isinstance(s.math, tuple) else ()))
    bulk = s.copy == "tma"
    if bulk and not any(name.startswith("tma_load") for name in target.instrs):
        raise FcError("compile/schedule", f"{target.arch} has no bulk tensor copies", expected="a Hopper target (sm_90a)",
                      got=f'copy="tma" on {target.arch}', hint='Schedule(copy="cp_async", math="mma"), or target="sm_90a"')
    if wgmma and not any(name.startswith("wgmma_m64") for name in target.instrs):
        raise FcError("compile/schedule", f"{target.arch} has no warpgroup instructions", expected="a Hopper target (sm_90a)",
                      got=f'math="wgmma" on {target.arch}', hint='Schedule(math="mma", copy="cp_async"), or target="sm_90a"')
    if wgmma and not bulk:
        raise FcError("compile/schedule", "wgmma reads tiles that bulk copies brought", expected='copy="tma" beside math="wgmma"',
                      got=f"copy={s.copy}", hint='Schedule(math="wgmma", copy="tma"), or math="mma"')
    if bulk and s.warps % 4:
        raise FcError("compile/schedule", "beside a role that copies, whole warpgroups compute", expected="warps=4, 8, 12 or 16",
                      got=f"warps={s.warps}")
    needs = (("hints", s.hints, bulk, 'copy="tma"'), ("makers", s.makers, bulk and s.warps < 16, 'copy="tma", and warps=4, 8 or 12'),
             ("sender", s.sender, bulk and s.epilogue == "tma", 'copy="tma" and epilogue="tma"'),
             ("made", s.made, bool(s.makers), "makers=4"),
             ("tokens", s.tokens, bulk and s.warps > 4, 'copy="tma" and several warpgroups: warps=8 or more'),
             ("ahead", s.ahead, s.copy == "cp_async", 'copy="cp_async" (bulk copies run ahead by themselves)'),
             ("parts", s.parts > 1, bulk and s.persistent == "none" and not any(n > 1 for _, n in s.cluster),
              'copy="tma", one tile for each block (persistent="none"), and no other cluster'))
    for field, asked, fine, expected in needs:
        if asked and not fine:
            raise without_effect(field, "it goes with other fields", expected=expected, got=str(s))


def _decided(op: Op, name: str, schedule: Schedule, target: Target) -> dict[str, Any]:
    if op.kind == "load":
        return {"stages": schedule.stages_of(name)} if name in _keys(schedule.stages) else {}
    family = schedule.math_of(name)
    marks = {attr: True for field, attr in OF_DOTS.items() if name in getattr(schedule, field)}
    grid = {"grid": dict(schedule.grid)[name]} if name in _keys(schedule.grid) else {}
    return {"math": family if multiplies(op, family, target) else "fma", **grid, **marks}
