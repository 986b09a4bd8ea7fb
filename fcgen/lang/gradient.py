"""`fc.grad(spec)`: a spec whose kernels compute the gradients of what another spec's kernels read (`grad.program`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..grad.program import gradient_of
from ..ir.core import Kernel
from ..ir.verify import verify
from .spec import Spec
from .trace import Trace, mistake


class Gradient(Spec):
    """The gradient of a spec with respect to the tensors `of`, all float ones that it reads if none is named."""

    def __init__(self, spec: Spec, of: tuple[str, ...] = ()):
        super().__init__(spec.fn)
        self.of = of

    @property
    def name(self) -> str:
        return f"{self.fn.__name__}_gradient"

    def until(self, name: str) -> Spec:
        raise mistake("trace/usage", "a gradient is not stopped at a value", hint="spec.until(...) of the spec itself")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise mistake("trace/usage", "a gradient is compiled before it is called", hint="fc.grad(spec).compile(...)(...)")

    def _once(self, tiles: Mapping[str, int], binding: Mapping[str, Any], fixed: frozenset[Any]) -> tuple[Kernel, Trace]:
        kernel, t = super()._once(tiles, binding, fixed)
        return verify(gradient_of(kernel, self.of)), t


def grad(spec: Spec, *of: str) -> Gradient:
    """A spec for the gradients of another one, by reverse mode: its kernels have the spec's grid and loops.

    Parameters of its kernels: those of the spec but for the outputs; `dNAME` for each output NAME, its gradient, in its dtype; and `dNAME`
    for each tensor in `of` (all of floats that are read, if there is none), f32, to which its gradient is added. Loops may carry
    anything; the gradient of sums, of an online softmax and of states that fade takes as many iterations as the spec, that of other states
    their square. What has no derivative, as a branch, is refused where a kernel is traced, with its line.
    """
    if not isinstance(spec, Spec) or isinstance(spec, Gradient) or spec.stop is not None:
        what = "the spec of a gradient has no gradient" if isinstance(spec, Gradient) else "fc.grad takes a spec"
        raise mistake("trace/usage", what, expected="what @fc.kernel made", got=repr(spec)[:80])
    wrong = [x for x in of if not isinstance(x, str)]
    if wrong:
        raise mistake("trace/usage", "fc.grad takes names of tensors", expected='fc.grad(spec, "A")', got=repr(wrong[0])[:80])
    return Gradient(spec, of)
