"""Words of the CUDA text: what people and files named becomes a C++ identifier or a comment here, and nowhere else.

While a kernel is printed, each thing that has a name is written as a *stand-in*, a word of one length that no other text holds. So what is
printed cannot depend on how long a name is or which letters it has. When the text is whole, `Names.settle` puts names in the place of the
stand-ins: as near to the wish as can be, each one given once, none that is a word of the text itself. Those are read from the text, so an
instruction's function, a loop's variable or a type needs no list that speaks of it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from hashlib import sha256

#: begins a stand-in: a letter that no source line or name is let through with
MARK = "ǂ"
STAND_IN = re.compile(MARK + r"\d{5,}")
#: an identifier, but for the name of a member
WORD = re.compile(r"(?<![.\w])[^\W\d]\w*")
#: identifiers and comments are cut at this length: compilers are known to give up at 100,000
LONGEST, WIDEST = 60, 160

#: C++20's keywords and alternative tokens, without those that begin with an underscore
KEYWORDS = frozenset("""
alignas alignof and and_eq asm auto bitand bitor bool break case catch char char8_t char16_t char32_t class co_await co_return co_yield
compl concept const const_cast consteval constexpr constinit continue decltype default delete do double dynamic_cast else enum explicit
export extern false float for friend goto if inline int long mutable namespace new noexcept not not_eq nullptr operator or or_eq private
protected public register reinterpret_cast requires return short signed sizeof static static_assert static_cast struct switch template this
thread_local throw true try typedef typeid typename union unsigned using virtual void volatile wchar_t while xor xor_eq
""".split())  # noqa: SIM905
#: what else means something before any declaration: macros that NVRTC has (those named cu... by their rule), and the built-in variables
PREDEFINED = frozenset("NULL assert va_arg va_copy va_end va_start threadIdx blockIdx blockDim gridDim warpSize".split())  # noqa: SIM905
_VENDOR = re.compile(r"cu(da|_)", re.IGNORECASE)


def code_of(line: str) -> str:
    """A line without its comment. Kernels have no strings, so `//` is always one."""
    return line.split("//", 1)[0]


@lru_cache(maxsize=8192)
def words_in(line: str) -> tuple[str, ...]:
    """A line's identifiers, those of its comment left out."""
    return tuple(WORD.findall(code_of(line)))


@lru_cache(maxsize=4096)
def comment(text: str) -> str:
    """`// text`: one line whatever the text is, that does not join the next one to it."""
    out = "".join(c if c.isprintable() and c != MARK else f"<{ord(c):x}>" for c in text[: WIDEST + 1]).strip()
    if len(out) > WIDEST:
        out = out[:WIDEST] + " ..."
    out = out.replace("*/", "* /").replace("/*", "/ *").replace("??", "? ?")
    return f"// {out}{'.' if out.endswith(chr(92)) else ''}".rstrip()


@lru_cache(maxsize=4096)
def identifier(name: str, default: str = "t") -> str:
    """The C++ identifier nearest to a name: of ASCII letters, legal in every scope, the same for the same name. Two names may share one."""
    word = re.sub(r"[\W_]+", "_", "".join(map(_ascii, unicodedata.normalize("NFKD", name[:1000]))), flags=re.ASCII).strip("_") or default
    if word[0].isdigit():
        word = f"v{word}"
    if len(word) > LONGEST or len(name) > 1000:
        word = f"{word[:LONGEST - 9]}_{sha256(name.encode(errors='surrogatepass')).hexdigest()[:8]}"
    return f"{word}_" if word in KEYWORDS or word in PREDEFINED or _VENDOR.match(word) else word


def _ascii(c: str) -> str:
    """A letter in ASCII: its own name where it has a short one ("alpha"), else its number."""
    if c.isascii() or unicodedata.combining(c):
        return c if c.isascii() else ""
    if not c.isalnum():
        return "_"
    found = re.fullmatch(r"\w+ (SMALL|CAPITAL) LETTER (?:FINAL )?(\w+)", unicodedata.name(c, ""))
    if found is None:
        return f"u{ord(c):x}"
    return found[2].lower() if found[1] == "SMALL" else found[2].capitalize()


class Names:
    """Gives stand-ins, and at the end names."""

    def __init__(self) -> None:
        self._wishes: list[tuple[str, str]] = []

    def __call__(self, wish: str, default: str = "t") -> str:
        """A stand-in for a name near to `wish`, which may hold stand-ins itself."""
        self._wishes.append((wish, default))
        return f"{MARK}{len(self._wishes) - 1:05}"

    def settle(self, text: str, taken: Iterable[str] = ()) -> dict[str, str]:
        """The name of each stand-in that the text holds. taken: words that no name may be, besides those of the text."""
        words = {w for w in WORD.findall(text) if not w.startswith(MARK)} | set(taken)
        given, names = set(words), dict[str, str]()
        count: dict[str, int] = {}

        def name(at: int) -> str:
            def earlier(m: re.Match[str]) -> str:
                n = int(m[0][1:])
                return "" if n >= at else names[m[0]] if m[0] in names else name(n)  # (someone's own name may look like a stand-in)

            wish, default = self._wishes[at]
            base = identifier(STAND_IN.sub(earlier, wish).replace(MARK, "_"), default)
            word, base = f"{base}_" if base in words else base, base.rstrip("_")
            while word in given:
                count[base] = count.get(base, 1) + 1
                word = f"{base}_{count[base]}"
            given.add(word)
            names[f"{MARK}{at:05}"] = word
            return word

        for n in sorted({int(s[1:]) for s in STAND_IN.findall(text)}):
            if f"{MARK}{n:05}" not in names:
                name(n)
        return names
