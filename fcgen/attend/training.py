"""The gradients of a call of attention: the programs of `kernels.backward` and `kernels.ragged_backward`, on torch's tensors.

Guaranteed: gradients are those of q, k and v, of the log-sum-exp where it is asked for, and of the float
tensors that score, dropout and sinks hold and that require one. Every tensor that the backward pass reads is saved by torch, which notices
where one has been written to in between; numbers are those of the forward call. Under `torch.use_deterministic_algorithms`, or `in_order`,
the gradient of q is summed up in one order: by turns, or in a pass of its own. What torch's autograd is told of it: `differentiable`.

Imported only where torch is in use.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch

from ..build.captured import Captured, Family
from ..build.compiler import target
from ..build.later import Later
from ..build.program import Program
from ..build.tables import kept_in
from ..errors import FcError
from ..ir.types import DTYPES, f32
from ..kernels import backward, ragged_backward
from ..kernels.backward_schedules import Way, candidates, few_bytes, turned, ways
from ..lang.captures import identity
from ..lang.spec import Spec
from ..runtime import tensors
from . import backward_plans, scores
from .learning import held_in, held_learn
from .variants import PLAIN, Functions

#: heads that fit every target; larger ones have programs for multiples of the second number, where they fit
WIDEST, STEP = 256, 32
#: so many roundings in a tensor's dtype leave a sum about as far off as the last one does
FEW = 4


class Specs(NamedTuple):
    """The programs of a backward pass: of rows, before the others; of keys and, if it adds them up, of q; of q alone; of q's sums, which
    the first one has cleared; of keys that adds them up in turn; of keys, leaving gradients of scores, and of q, of those. Where there is
    `after`, what is of q alone makes what the first one does."""

    before: Spec
    keys: Spec
    rows: Spec
    after: Spec | None = None
    in_turn: Spec | None = None
    scores: Spec | None = None
    queries: Spec | None = None


DENSE = Specs(backward.rows_before, backward.backward, backward.backward_rows, backward.rows_after, backward.backward_in_turn,
              backward.backward_scores, backward.backward_queries)
RAGGED = Specs(ragged_backward.ragged_rows_before, ragged_backward.ragged_backward, ragged_backward.ragged_backward_rows)


class Call(NamedTuple):
    """run: what (q, k, v) gives, with the log-sum-exp. arch: the device's own target. heads: the axis of heads. facts: what the programs
    are compiled for, arguments: what they are given, by parameter; each takes what it has a parameter for. saved: tensors that lie behind
    the arguments."""

    run: Callable[..., tuple[Any, Any]]
    specs: Specs
    scale: float
    arch: str
    heads: int
    given: Functions
    facts: Mapping[str, Any]
    arguments: Mapping[str, Any]
    saved: tuple[Any, ...] = ()


class Ready(NamedTuple):
    """A program (`make` gives it), with what its functions held at the call. numbers: by parameter. held: parameter -> which of the saved
    tensors. gradients: parameter -> of which of them it takes the gradient, and whether it stores that, each element once. every: it
    comes to every score."""

    make: Callable[[], Program]
    numbers: Mapping[str, Any]
    held: Mapping[str, int]
    gradients: Mapping[str, tuple[int, bool]]
    every: bool = False

    def takes(self, parameter: str) -> bool:
        return any(p.name == parameter for p in self.make().params)

    def launch(self, arguments: Mapping[str, Any], saved: tuple[Any, ...], into: dict[int, Any]) -> None:
        """arguments: those that it has parameters for, and others."""
        program = self.make()
        for name, (n, stores) in self.gradients.items():
            if n not in into:  # rows of whole 16 bytes, which bulk stores can move
                *outer, last = saved[n].shape
                own = next(p for p in program.params if p.name == name).type.dtype != f32
                whole = stores and self.every and saved[n].shape == (*arguments["Q"].shape[:3], arguments["K"].shape[2])
                wide = last + -last % (8 if own else 4) if outer else last
                into[n] = (torch.empty if whole else torch.zeros)((*outer, wide), dtype=saved[n].dtype if own else torch.float32,
                                                                 device=saved[n].device)[..., :last]
        known = {p.name for p in program.params}
        given = {**{n: x for n, x in arguments.items() if n in known}, **self.numbers}
        held = {**{name: saved[n] for name, n in self.held.items()}, **{name: into[n] for name, (n, _) in self.gradients.items()}}
        program.launcher({**given, **held})


#: a program without the gradient of the log-sum-exp, and with it
Pair = tuple[Ready, Ready]


class Plan(NamedTuple):
    """The programs of a backward pass, None where nobody wants what they compute: rows is run in front of keys; after, or queries, behind
    it. rows_before: first with the gradient of the log-sum-exp, and with nothing to clear. kinds: how calls are launched that are known
    (`backward_plans`). room: bytes that the gradients of scores may take at a time."""

    way: Way
    first: Pair | None
    rows: Pair | None
    keys: Ready | None
    after: Ready | None
    queries: Ready | None
    rows_before: Ready
    kinds: list[Any]
    room: int


def widened(q: Any, k: Any, v: Any) -> list[Any] | None:
    """With zeros beside them, where the head sizes have no backward programs."""
    if max(q.shape[-1], v.shape[-1]) <= WIDEST or not (q.shape[-1] % STEP or v.shape[-1] % STEP):
        return None
    return [torch.nn.functional.pad(x, (0, -x.shape[-1] % STEP)) for x in (q, k, v)]


#: whether the gradient of q is summed up in one order, whatever torch's own switch says
in_order: ContextVar[bool] = ContextVar("in_order", default=False)


def gradients(call: Call, plan: Plan, o: Any, lse: Any, q: Any, k: Any, v: Any, held: tuple[Any, ...], do: Any, dlse: Any,
              into: dict[int, Any]) -> tuple[Any, Any, Any]:
    """Those of q, k and v, of what is wanted; those of the held tensors are added to `into`."""
    if 0 in q.shape or 0 in k.shape or 0 in v.shape:
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    still = dlse is None and _one_key(call, k)
    usual = dlse is None and do is not None and call.given == PLAIN and call.specs is DENSE and not still
    every = (q, k, v, o, lse, do) if usual else None
    found = None if every is None else backward_plans.known(plan, call.scale, every)
    if found is not None:
        return found  # type: ignore[no-any-return]
    do = torch.zeros_like(o) if do is None else do.resolve_neg()
    if do.stride(-1) != 1 or not tensors.describe(do, "dO").in_lines:
        do = do.contiguous()
    given = {**call.arguments, "Q": q, "K": k, "V": v, "O": o, "dO": do, "LSE": lse, "Delta": _lines_like(lse), "LSE2": _lines_like(lse),
             "scale": call.scale}
    new = _zeros if call.specs is RAGGED else _like  # of what lies in no sequence nothing is written
    dq, dk, dv, total = None, None, None, None
    given["Turns"] = torch.empty(lse.shape, dtype=torch.int32, device=q.device) if plan.way is Way.TURNS else None
    if plan.way.adds:
        cleared = plan.first is not None and plan.first[0].takes("Sums")
        total = (torch.empty if cleared else torch.zeros)(q.shape, dtype=torch.float32, device=q.device)
    for pair in (plan.first, plan.rows):
        if pair is not None:
            part = pair[dlse is not None]
            if "dLSE" not in given and part.takes("dLSE"):
                given["dLSE"] = torch.zeros_like(lse) if dlse is None else dlse.resolve_neg().contiguous()
            if pair is plan.rows:
                dq = new(q)
            part.launch({**given, "dQ": dq, "Sums": total}, held, into)
    if plan.keys is not None:
        dk, dv = new(k), new(v)
        given |= {"dK": dk, "dV": dv}
        if plan.queries is None:
            plan.keys.launch({**given, "dQ": total}, held, into)
        else:
            dq = new(q)
            scores.launch((plan.keys, plan.queries), {**given, "dQ": dq}, plan.room, call.given != PLAIN, held, into)
    if plan.after is not None:
        dq = new(q)
        plan.after.launch({"Sums": total, "dQ": dq, "scale": call.scale}, held, into)
    elif total is not None:
        dq = torch.mul(total, call.scale, out=torch.empty_like(total, dtype=q.dtype))
    if every is not None:
        backward_plans.learn(plan, every)
    if still:  # (infinities and what is no number stay none)
        dq, dk = (None if x is None else x.mul_(0) for x in (dq, dk))
    return dq, dk, dv


def _zeros(x: torch.Tensor) -> torch.Tensor:
    return torch.zeros(x.shape, dtype=x.dtype, device=x.device)


def _like(x: torch.Tensor) -> torch.Tensor:
    """A new tensor, its axes in memory in x's order if its rows are."""
    return torch.empty_like(x) if x.stride(-1) == 1 else torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _one_key(call: Call, k: Any) -> bool:
    """Is the weight of each row's only key 1, whatever its score? Nothing flows into it then: programs find sums whose orders differ."""
    _, _, weigh, sink = call.given
    return weigh is None and sink is None and (call.arguments["longest_k"] if call.specs is RAGGED else k.shape[2]) == 1


def plan_of(call: Call, q: Any, k: Any, v: Any, for_q: bool, for_k: bool, held: list[Any]) -> Plan:
    """for_q, for_k: whether gradients of q, and of k or v, are wanted. held: receives the tensors that the functions hold."""
    like = tensors.outline(q, "q")
    lines = like.in_lines and all(tensors.outline(x, n).in_lines for x, n in ((k, "k"), (v, "v")))
    uneven, rows = call.facts.get("mask", "none") != "none", q.shape[2]
    head, grouped, plain = max(q.shape[-1], v.shape[-1]), q.shape[call.heads] != k.shape[call.heads], call.given == PLAIN
    ordered, way, room = in_order.get() or torch.are_deterministic_algorithms_enabled(), Way.ADDS, 0
    if call.arch.endswith("a") and lines:
        room = scores.room(like.device) if call.specs.queries is not None and for_q and for_k else 0
        way = ways(head, uneven, grouped, rows, ordered, plain and call.specs.in_turn is not None,
                   room >= scores.least(q.shape, k.shape, like.dtype, whole=not plain))
    elif ordered:
        way = Way.ROWS
    few = not plain and call.specs is DENSE and _few(call.given, q.shape[0] * q.shape[1] * rows * k.shape[2])
    make = functools.partial(_plan, call, like, q.shape[-1], v.shape[-1], lines, way, grouped, for_q, for_k, held, few, room)
    if not plain:
        return make()
    key = (call.specs, call.arch, *call.facts.items(), like.device, like.dtype, q.shape[-1], v.shape[-1], lines, way, grouped, for_q, for_k,
           room)
    return kept_in(_plans, 1024, key, make)


_plans: dict[Any, Plan] = {}


def _few(given: Functions, scores: int) -> bool:
    """Whether few scores have an element of each of the tensors that learn in common."""
    learnt = [x for x in held_in(given.score) if x.requires_grad]
    return given.weigh is None and bool(learnt) and all(scores <= FEW * x.numel() for x in learnt)


def _plan(call: Call, like: tensors.TensorArg, d: int, e: int, lines: bool, way: Way, grouped: bool, for_q: bool,
          for_k: bool, held: list[Any], few: bool, room: int) -> Plan:
    """lines: bulk copies can move q, k and v. grouped: heads of keys are shared. few: as `_few` says. room: as Plan has it."""
    common, dense = target(call.arch.rstrip("a")).arch, call.specs is DENSE
    arch = call.arch if lines else common
    score, keep, weigh, sink = call.given
    facts = {"T": DTYPES[like.dtype], "D": d, "E": e, **call.facts}
    functions = {n: f for n, f in (("score", score), ("keep", keep), ("weigh", weigh)) if f is not None}
    sinks = {} if sink is None else {"sink": sink}
    every = for_k or held_learn(Functions(score=score, weigh=weigh))
    if not (for_q and every):  # nothing is left to add to, or to leave scores
        way = Way.ROWS
    adds, turns = way.adds, way is Way.TURNS
    more = {"grouped": grouped, **({"held": "few"} if few else {}), **({} if adds else {"dQ": None})}
    of_keys = {Way.TURNS: call.specs.in_turn, Way.SCORES: call.specs.scores}.get(way) or call.specs.keys
    keys = _ready(of_keys, arch, {**facts, **more}, functions, held) if every else None
    queries = None
    if way is Way.SCORES and call.specs.queries is not None:
        queries = _ready(call.specs.queries, arch, facts, {n: f for n, f in functions.items() if n == "keep"}, held)
    whole = _ready(call.specs.before, common, {**facts, "Sums": None, "Turns": None}, sinks, held)
    first: Pair | None = None
    rows: Pair | None = None
    if way is not Way.ROWS or not for_q or not dense:
        clears = {} if adds and dense and not sinks else {"Sums": None}
        clears |= {} if turns else {"Turns": None}
        first = (whole, whole) if sinks else _pair(call.specs.before, common, {**facts, **clears}, {}, held)
    if for_q and way is Way.ROWS:
        unread = {} if every else {"Delta": None, "LSE2": None}
        rows = _pair(call.specs.rows, arch, {**facts, **unread}, {**functions, **(sinks if dense else {})}, held)
    after = _ready(call.specs.after, common, facts, {}, held) if adds and call.specs.after is not None else None
    for part in (keys, rows and rows[0], first and first[0], after, queries):  # the backward pass will ask for them
        if part is not None and isinstance(part.make, functools.partial):
            _begun(*part.make.args)
    return Plan(way, first, rows, keys, after, queries, whole, [], room)


def _pair(spec: Spec, arch: str, facts: Mapping[str, Any], functions: Mapping[str, Any], held: list[Any]) -> Pair:
    """Where there are functions one program for both, of which zeros make the other."""
    whole = _ready(spec, arch, facts, functions, held)
    return (whole if functions else _ready(spec, arch, {**facts, "dLSE": None}, {}, held)), whole


def _ready(spec: Spec, arch: str, facts: Mapping[str, Any], functions: Mapping[str, Any], held: list[Any]) -> Ready:
    signature = spec.signature
    known = {*signature.dims, *signature.dtype_names, *(p.name for p in signature.params if p.kind == "static" or p.optional)}
    facts = {n: x for n, x in facts.items() if n in known}
    key = spec, arch, tuple(facts.items()), tuple((n, identity(f)) for n, f in functions.items())
    if not functions:
        return Ready(functools.partial(_plain, spec, arch, tuple(facts.items())), {}, {}, {})
    family = _families.get(key)
    if family is None or not _stands(family.find(functions)[0]):
        if len(_families) >= 256:
            _families.clear()
        made = _compiled(spec, arch, facts, functions)
        assert isinstance(made, Captured)
        family = _families[key] = made.family
    program, found, values = family.find(functions)
    where: dict[str, int] = {}
    for name, x in values.items():
        if isinstance(x, torch.Tensor):
            if not any(x is y for y in held):
                held.append(x)
            where[name] = next(n for n, y in enumerate(held) if y is x)
    numbers = {name: x for name, x in values.items() if name not in where}
    every = spec in (DENSE.keys, DENSE.scores) and facts["mask"] == "none" and "keep" not in functions
    return Ready(lambda: program, numbers, where, {name: (where[of], stored) for name, of, stored in found.gradients}, every)


_families: dict[Any, Family] = {}


#: programs without functions, by spec, target and facts
_programs: dict[Any, Later[Program]] = {}


def _begun(*key: Any) -> Later[Program]:
    begun = _programs.get(key)
    if begun is None or begun.failed:  # what was amiss may be no more
        if len(_programs) >= 1024:
            _programs.clear()
        spec, arch, facts = key
        begun = _programs[key] = Later(lambda: _compiled(spec, arch, dict(facts), {}))
    return begun


def _plain(*key: Any) -> Program:
    return _begun(*key).result()


def _compiled(spec: Spec, arch: str, facts: Mapping[str, Any], functions: Mapping[str, Any]) -> Program:
    """With the first schedule that leaves registers for everything; where none does, with the first one that can be; where none can, with
    what a model of the machine finds, for heads that fit anywhere. Raises FcError "compile/budget"."""
    head = max(facts.get("D", 0), facts.get("E", 0))
    adds = "dQ" not in facts
    uneven = facts.get("mask", "none") != "none"
    listed = [(arch, s) for s in candidates(spec.name, arch, head, adds, uneven, bool(facts.get("grouped")), "keep" in functions)]
    if arch.endswith("a"):
        listed += [(target(arch.rstrip("a")).arch, s) for s in candidates(spec.name, arch.rstrip("a"), head, adds)]
    possible: Program | None = None
    for to, schedule in listed:
        try:
            program = spec.compile(target=to, schedule=schedule, check=False, **facts, **functions,
                                   **(turned(schedule) if any(p.name == "turned" for p in spec.signature.params) else {}))
            if _fits(program.first if isinstance(program, Captured) else program, few_bytes(schedule, bool(functions))):
                return program  # type: ignore[no-any-return]
            possible = possible or program
        except FcError as e:
            if not e.code.startswith("compile/"):
                raise
    if possible is None and head > WIDEST and listed:
        raise FcError("compile/budget", f"no tile of the backward pass for these head sizes fits {arch}", got=facts,
                      expected="tiles of all four tensors in the registers and the shared memory of a block",
                      hint=f"heads of at most {WIDEST} fit every target; without a gradient: torch.no_grad()")
    return possible or spec.compile(target=arch, check=False, **facts, **functions)


def _lines_like(rows: torch.Tensor) -> torch.Tensor:
    """Room for a float32 per row, each head's from a multiple of 16 bytes on, as bulk copies read them whatever the number of rows is."""
    return rows.new_empty((*rows.shape[:-1], -(-rows.shape[-1] // 4) * 4), dtype=torch.float32)[..., :rows.shape[-1]]


def _stands(program: Program) -> bool:
    """Whether the schedule that was found for the first functions of a text is possible with what others hold: tensors whose rows begin on
    multiples of 16 bytes are read tile by tile, which takes shared memory."""
    try:
        return program.built is not None
    except FcError as e:
        if not e.code.startswith("compile/"):
            raise
        return False


def _fits(program: Program, few: int) -> bool:
    program.quiet = True
    found = program.resources
    return not found.spills if found.spill_stores is None else found.spill_stores <= few
