"""The examples in docs/ of interfaces run as they stand, but for the device."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install fcgen[torch]")
pytestmark = pytest.mark.filterwarnings("ignore")
DOCS = Path(__file__).resolve().parents[2] / "docs"
EXAMPLES = [(name, n, code) for name in ("torch", "flash_attention", "transformers", "interfaces")
            for n, code in enumerate(re.findall(r"```python\n(.*?)```", (DOCS / f"{name}.md").read_text(encoding="utf-8"), re.DOTALL))]


@pytest.mark.parametrize(("name", "n", "code"), EXAMPLES, ids=[f"{name} {n}" for name, n, _ in EXAMPLES])
def test_examples(kernels, fresh, name, n, code, monkeypatch):
    if name == "transformers":
        pytest.importorskip("transformers", minversion="4.56", reason="needs transformers: pip install transformers")
    if "flash_backend" in code and not hasattr(torch.nn.attention, "register_flash_attention_impl"):
        pytest.skip("needs torch 2.11, which registers backends")
    made = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *fn, **more: made(*fn, **{**more, "backend": "eager"}))  # Inductor needs a compiler
    module = ModuleType("example")
    monkeypatch.setitem(sys.modules, "example", module)  # where Dynamo looks for the names of a function
    exec(compile(code.replace('"cuda"', '"cpu"'), f"{name}.md", "exec"), vars(module))
    assert kernels or "flash_backend" in code
    if "flash_backend" in code:
        torch.nn.attention._registry._FLASH_ATTENTION_IMPLS.pop("fcgen")
