"""The shape of the house: who imports whom, what the compiler does not know, and that the documents say what is there."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from pathlib import Path

import pytest

from fcgen.cli.commands import main
from fcgen.passes import PIPELINE

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "fcgen"
MODULES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = {"ir": {"errors"}, "grad": {"errors", "ir"}, "lang": {"errors", "ir", "grad"}, "passes": {"errors", "ir"}, "backends": {"errors", "ir"},
           "sim": {"errors", "ir"}, "runtime": {"errors", "ir"}}
WORDS = ("attention", "softmax", "causal", "query", "key_cache", "flash", "kv_len")
MOST_LINES, USUAL_LINES = 450, 400
DOCUMENTS = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "examples" / "README.md", ROOT / "docs" / "reference.md"]


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


#: torch's operators, which call `fcgen.attention`, are declared when a graph is first traced, and calls that train look at
#: arguments as others do: imports that go back
GOES_BACK = {("fcgen.attend.forward", "fcgen.attend.torch_op"), ("fcgen.attend.forward", "fcgen.attend.trained")}


def files_imported() -> dict[str, set[str]]:
    """module -> the modules of fcgen that it imports, at its top or in a function; not what only a type checker reads."""
    modules = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in MODULES}
    out = {}
    for module, path in modules.items():
        package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
        tree = ast.parse(path.read_text(encoding="utf-8"))
        unread = {id(n) for t in ast.walk(tree) if isinstance(t, ast.If) and ast.unparse(t.test) == "TYPE_CHECKING" for n in ast.walk(t)}
        out[module] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and id(node) not in unread:
                full = ".".join([*package[:len(package) - node.level + 1], node.module or ""]).strip(".") if node.level else node.module
                out[module] |= {m for a in node.names for m in [f"{full}.{a.name}" if f"{full}.{a.name}" in modules else full] if m in modules}
    return out


def test_no_two_files_import_each_other():
    """Not by way of others either: files can be read in an order in which each needs only those before it."""
    left = {m: {n for n in needs if (m, n) not in GOES_BACK} for m, needs in files_imported().items()}
    while free := [m for m, needs in left.items() if not needs & set(left) - {m}]:
        left = {m: needs for m, needs in left.items() if m not in free}
    ends = {m for needs in left.values() for m in needs}
    assert not left, "\n".join(f"{m} imports {', '.join(sorted(needs & set(left)))}" for m, needs in left.items() if m in ends)


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
    lines = {name(p): len(p.read_text(encoding="utf-8").splitlines()) for p in MODULES}
    assert not {p: n for p, n in lines.items() if n > MOST_LINES}
    above = {p: n for p, n in lines.items() if n > USUAL_LINES}
    assert len(above) <= len(lines) // 20, above


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


def test_architecture_names_every_file_of_the_folders_that_it_lists():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    for folder in ("kernels", "build", "attend", "torch"):
        row = next(line for line in text.splitlines() if line.startswith(f"| `fcgen/{folder}/`"))
        assert [p.name for p in sorted((PACKAGE / folder).glob("[!_]*.py")) if f"`{p.stem}`" not in row] == []


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


def command_lines() -> list[tuple[str, list[str]]]:
    """(document, words) of each `fcgen ...` that a document shows, up to a shell operator; `...` and prose after it are left out."""
    out = []
    for document in DOCUMENTS:
        text = " ".join(document.read_text(encoding="utf-8").split())
        for line in re.findall(r"`(?:python -m )?fcgen ([^`]+)`|\.venv/bin/fcgen ([^`&|]+)", text):
            out.append((document.name, shlex.split(line[0] or line[1])))
    return out


def test_every_command_of_the_documents_exists():
    shown = command_lines()
    assert {"demo", "dump", "build", "check", "explain", "doctor", "layout"} <= {words[0] for _, words in shown}
    for document, words in shown:
        command = main.commands.get(words[0])
        assert command is not None, f"{document}: fcgen {' '.join(words)}"
        options = {o: p for p in command.params for o in p.opts}
        for word, value in zip(words, [*words[1:], ""]):
            if word.startswith("--"):
                assert word in options, f"{document}: fcgen {words[0]} has no {word}"
                choices = getattr(options[word].type, "choices", None)
                assert not choices or value in choices or value in ("...", ""), f"{document}: {word} {value}"


def test_no_file_holds_a_path_of_a_machine():
    """What is in the repository is the same wherever it was written."""
    home = re.compile(r"(?<![\w.$~}*-])/(?:home|root|Users|work|workspace|mnt|tmp)/(?!\.\.\.)[\w.-]+")
    folders = ("fcgen", "tests", "examples", "benchmarks", "docs", ".ci")
    paths = [p for p in ROOT.iterdir() if p.is_file()] + [p for f in folders for p in sorted((ROOT / f).rglob("*")) if p.is_file()]
    wrong = []
    for path in paths:
        if path.suffix != ".pyc" and "out" not in path.parts and not path.name.startswith(".git"):
            text = path.read_text(encoding="utf-8", errors="replace")
            wrong += [f"{name(path)}:{i}: {m.group()}" for i, line in enumerate(text.splitlines(), 1) for m in home.finditer(line)]
    assert not wrong, "\n".join(wrong)


def test_links_between_documents_lead_somewhere():
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            assert target.startswith("http") or (document.parent / target).exists(), f"{document.name}: {target}"
