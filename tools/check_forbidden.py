"""Finds what fedlora's code must not contain. `python tools/check_forbidden.py [ROOT]` ends with 1 if it finds any.

Faults: code-carrying formats and their loaders (pickle and its kin, torch.load, yaml.load, ...), `allow_pickle=True`,
`trust_remote_code=True`, eval and exec, `assert` in the package (it vanishes under -O), files of more than 300 lines,
adjacent string literals that lose the space between two words.
Remarks, which do not fail: functions of more than 60 lines.
"""

import ast
import io
import itertools
import sys
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "fedlora"
GENERATED = ("_pb2.py", "_pb2_grpc.py")
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60

CODE_CARRYING_MODULES = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN_NAMES = {
    "torch.load": "use safetensors.torch.load_file",
    "torch.save": "use safetensors.torch.save_file",
    "yaml.load": "use yaml.safe_load",
    "yaml.load_all": "use yaml.safe_load_all",
    "yaml.full_load": "use yaml.safe_load",
    "yaml.unsafe_load": "use yaml.safe_load",
    "eval": "parse the value instead",
    "exec": "call a function instead",
    "builtins.eval": "parse the value instead",
    "builtins.exec": "call a function instead",
}
FORBIDDEN_ARGUMENTS = {"allow_pickle", "trust_remote_code"}


@dataclass(frozen=True)
class Source:
    """One Python file, read and parsed."""

    path: Path
    text: str
    tree: ast.Module


@dataclass(frozen=True)
class Finding:
    """Something in a file; `fails` says whether it fails the check."""

    path: Path
    line: int
    message: str
    fails: bool = True

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {'' if self.fails else 'remark: '}{self.message}"


Rule = Callable[[Source], Iterator[Finding]]


def aliases(tree: ast.Module) -> dict[str, str]:
    """What each imported local name stands for, e.g. {"np": "numpy", "load": "torch.load"}."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {
                n.asname or n.name.split(".")[0]: n.name if n.asname else n.name.split(".")[0] for n in node.names
            }
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {n.asname or n.name: f"{node.module}.{n.name}" for n in node.names}
    return names


def dotted(node: ast.expr, names: dict[str, str]) -> str | None:
    """The full dotted name that `node` refers to, if it is a plain name or attribute of one."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        owner = dotted(node.value, names)
        return None if owner is None else f"{owner}.{node.attr}"
    return None


def forbidden_imports(source: Source) -> Iterator[Finding]:
    """Imports of modules whose files can run code when they are read."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            modules = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        else:
            continue
        for module in modules:
            if module.split(".")[0] in CODE_CARRYING_MODULES:
                yield Finding(source.path, node.lineno, f"imports {module}: use safetensors, JSON or protobuf")


def forbidden_names(source: Source) -> Iterator[Finding]:
    """Uses, called or not, of functions that load or run code, under whatever name they were imported."""
    names = aliases(source.tree)
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Name | ast.Attribute) or not isinstance(node.ctx, ast.Load):
            continue
        name = dotted(node, names)
        if name in FORBIDDEN_NAMES:
            yield Finding(source.path, node.lineno, f"uses {name}: {FORBIDDEN_NAMES[name]}")


def forbidden_arguments(source: Source) -> Iterator[Finding]:
    """`allow_pickle` and `trust_remote_code` with any value but a literal False (or None)."""
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Call):
            continue
        for keyword in node.keywords:
            off = isinstance(keyword.value, ast.Constant) and keyword.value.value in (False, None)
            if keyword.arg in FORBIDDEN_ARGUMENTS and not off:
                yield Finding(source.path, keyword.value.lineno, f"passes {keyword.arg}: it lets a file run code")


def asserts(source: Source) -> Iterator[Finding]:
    """`assert` statements."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Assert):
            yield Finding(source.path, node.lineno, "assert vanishes under -O: raise an error of fedlora/errors.py")


def long_file(source: Source) -> Iterator[Finding]:
    """A file that should be two."""
    lines = source.text.count("\n")
    if lines > MAX_FILE_LINES:
        yield Finding(source.path, lines, f"{lines} lines; at most {MAX_FILE_LINES}: split the file")


def long_functions(source: Source) -> Iterator[Finding]:
    """Functions that should be several."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                yield Finding(source.path, node.lineno, f"{node.name} has {lines} lines", fails=False)


def lost_spaces(source: Source) -> Iterator[Finding]:
    """Adjacent literals such as "each step" "of a round", which read "each stepof a round".

    Only texts with a space somewhere count, so that long hashes, paths and patterns may be broken anywhere.
    """
    for group in adjacent_literals(source.text):
        if not any(" " in literal.body for literal in group):
            continue
        for left, right in itertools.pairwise(group):
            if ends_word(left.body) and right.body[:1].isalpha():
                message = f"no space between {left.body[-20:]!r} and {right.body[:20]!r}"
                yield Finding(source.path, right.line, message)


def ends_word(body: str) -> bool:
    """Whether a letter after `body` would run into a word, a closing mark or a value."""
    escaped = len(body) > 1 and body[-2] == "\\"
    return bool(body) and not escaped and (body[-1].isalnum() or body[-1] in ".,;:!?)]}%'\"`")


@dataclass(frozen=True)
class Literal:
    """A string literal as it is written, without its prefix and quotes."""

    line: int
    body: str


def adjacent_literals(text: str) -> Iterator[list[Literal]]:
    """Groups of two or more string literals with nothing but white space between them."""
    group: list[Literal] = []
    for literal in literals(text):
        if literal is not None:
            group.append(literal)
            continue
        if len(group) > 1:
            yield group
        group = []


def literals(text: str) -> Iterator[Literal | None]:
    """The string literals of a file in order, with None wherever something else stands between or after them."""
    lines = text.splitlines(keepends=True)
    blank = {tokenize.NL, tokenize.COMMENT}
    start_of_fstring = getattr(tokenize, "FSTRING_START", None)  # f-strings are several tokens from Python 3.12 on
    end_of_fstring = getattr(tokenize, "FSTRING_END", None)
    opened: list[tuple[int, int]] = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if start_of_fstring is not None and token.type == start_of_fstring:
            opened.append(token.start)
        elif opened and token.type == end_of_fstring:
            start = opened.pop()
            if not opened:
                yield literal_at(lines, start, token.end)
        elif not opened and token.type == tokenize.STRING:
            yield literal_at(lines, token.start, token.end)
        elif not opened and token.type not in blank:
            yield None


def literal_at(lines: list[str], start: tuple[int, int], end: tuple[int, int]) -> Literal:
    """The literal between two (line, column) positions."""
    rows = lines[start[0] - 1 : end[0]]
    rows[-1] = rows[-1][: end[1]]
    rows[0] = rows[0][start[1] :]
    quoted = "".join(rows).lstrip("rRbBfFuU")
    width = 3 if quoted[:3] in {'"""', "'''"} else 1
    return Literal(start[0], quoted[width:-width])


RULES: list[Rule] = [
    forbidden_imports,
    forbidden_names,
    forbidden_arguments,
    asserts,
    long_file,
    long_functions,
    lost_spaces,
]


def check(root: Path) -> list[Finding]:
    """All findings in the package under `root`, by file and line."""
    findings: list[Finding] = []
    for path in sorted((root / PACKAGE).rglob("*.py")):
        if path.name.endswith(GENERATED):
            continue
        text = path.read_text(encoding="utf-8")
        source = Source(path.relative_to(root), text, ast.parse(text, filename=str(path)))
        findings += sorted((f for rule in RULES for f in rule(source)), key=lambda f: f.line)
    return findings


def main(root: Path) -> int:
    """Prints the findings; 1 if any of them fails."""
    findings = check(root)
    for finding in findings:
        print(finding)
    return int(any(finding.fails for finding in findings))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent))
