"""The shape of the house: who imports whom, what the compiler does not know, and that the documents say what is there."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

from fcgen.passes import PIPELINE

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "fcgen"
MODULES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = {"ir": {"errors"}, "lang": {"errors", "ir"}, "passes": {"errors", "ir"}, "backends": {"errors", "ir"},
           "sim": {"errors", "ir"}, "runtime": {"errors", "ir"}}
WORDS = ("attention", "softmax", "causal", "query", "flash", "kv_len")
MOST_LINES = 450


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> set[str]:
    """What a module imports of fcgen, as dotted names below it: {"ir.core", "errors"}; "" is the package itself."""
    package = list(path.relative_to(ROOT).parent.parts)
    out = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            out |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else []
            full = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            out |= {f"{full}.{a.name}" for a in node.names}
    return {m.removeprefix("fcgen").removeprefix(".") for m in out if m == "fcgen" or m.startswith("fcgen.")}


def part(module: str) -> str:
    return module.split(".")[0]


@pytest.mark.parametrize("folder", FOLDERS)
def test_import_directions(folder):
    allowed = FOLDERS[folder] | {folder}
    wrong = [f"{name(p)} imports fcgen.{m}" for p in sorted((PACKAGE / folder).rglob("*.py")) for m in imports(p) if part(m) not in allowed]
    assert not wrong, "\n".join(wrong)


def test_errors_import_nothing_of_fcgen():
    assert imports(PACKAGE / "errors.py") == set()


def test_kernels_use_the_public_api_and_the_language():
    """A kernel could be written outside the package: no pass, backend, simulator or runtime."""
    hidden = {"passes", "backends", "sim", "runtime", "cli"}
    wrong = [f"{name(p)} imports fcgen.{m}" for p in sorted((PACKAGE / "kernels").glob("*.py")) for m in imports(p) if part(m) in hidden]
    assert not wrong, "\n".join(wrong)


def test_nothing_imports_the_command_line():
    inside = lambda p: p.relative_to(PACKAGE).parts[0] in ("cli", "cli.py", "__main__.py") or p.name.startswith("cli")
    wrong = [name(p) for p in MODULES if not inside(p) and any(part(m) == "cli" for m in imports(p))]
    assert not wrong, wrong


@pytest.mark.parametrize("folder", ["passes", "backends", "sim"])
def test_the_compiler_does_not_know_what_it_compiles(folder):
    wrong = [f"{name(p)}:{i}: {line.strip()}" for p in sorted((PACKAGE / folder).rglob("*.py"))
             for i, line in enumerate(p.read_text(encoding="utf-8").splitlines(), 1) if any(w in line.lower() for w in WORDS)]
    assert not wrong, "\n".join(wrong)


def test_files_are_short():
    long = {name(p): n for p in MODULES if (n := len(p.read_text(encoding="utf-8").splitlines())) > MOST_LINES}
    assert not long, long


def test_every_pass_says_what_comes_in_and_goes_out():
    for p in PIPELINE:
        doc = sys.modules[p.run.__module__].__doc__ or ""
        assert re.search(r"\bIn\b", doc) and re.search(r"\b[Oo]ut\b", doc), f"{p.name}: {doc[:60]!r}"


def test_every_folder_says_what_it_is():
    for path in sorted(PACKAGE.rglob("__init__.py")):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), name(path)


# ---- documents -----------------------------------------------------------------------------------------------------


def test_architecture_names_every_pass_and_folder():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    missing = [p.name for p in PIPELINE if f"`{p.name}`" not in text]
    missing += [f"fcgen/{d.name}/" for d in sorted(PACKAGE.iterdir()) if (d / "__init__.py").exists() and f"`fcgen/{d.name}/`" not in text]
    assert not missing, missing


def commands() -> dict[str, str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return dict(re.findall(r"<!-- (\w+) -->\n```\w*\n(.*?)\n```", text, re.DOTALL))


def test_readme_has_exactly_two_commands():
    found = commands()
    assert set(found) == {"demo", "test"}
    for command in found.values():
        assert "\n" not in command and command.startswith("python3 -m venv ")
    assert "fcgen demo" in found["demo"] and "pytest" in found["test"]


def test_ci_runs_the_readme_test_command():
    script = ROOT / ".ci" / "run"
    text = script.read_text(encoding="utf-8")
    assert script.stat().st_mode & 0o111, ".ci/run is executable"
    assert "<!-- test -->" in text and "README.md" in text and "set -euo pipefail" in text


def test_the_readme_shows_the_spec_of_the_example():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    source = (ROOT / "examples" / "attention.py").read_text(encoding="utf-8")
    spec = source[source.index("@fc.kernel"):source.index("\n\n\ndef inputs")]
    assert spec in readme


def test_every_example_is_in_the_table():
    table = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    assert [p.name for p in sorted((ROOT / "examples").glob("*.py")) if f"`{p.name}`" not in table] == []


def test_links_between_documents_lead_somewhere():
    for document in [ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "examples" / "README.md"]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            assert target.startswith("http") or (document.parent / target).exists(), f"{document.name}: {target}"
