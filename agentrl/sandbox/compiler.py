"""The compiling process turns source into code, and says whether the code is simple.


Simple code can change nothing that outlives its call. It uses no name, attribute or module that leads to a changeable
object of the interpreter, and it defines nothing that the interpreter would run later. So it can change only its own
values, and these end with its namespace. Calls of simple code share one process across episodes, which saves a fork.
All other code runs in the process of its episode, even if it is harmless: the lists below say what is simple.
"""

from __future__ import annotations

import ast
import builtins
import json
import marshal
import re
import string
from typing import Any

SIMPLE, OTHER = b"s", b"o"  # first byte of an answer; the rest goes to `tool.evaluate`
MEDDLES = re.compile(r"builtins|sys\W|setattr|__\w+__|globals|vars|eval|exec|\w\.\w+ ?=[^=]")

# Functions, types and exceptions that lead to no frame, module or namespace, and that cannot set an attribute.
NAMES = {
    "False", "None", "True", "__name__", "abs", "all", "any", "bin", "bool", "callable", "chr", "complex", "dict",
    "divmod", "enumerate", "filter", "float", "format", "frozenset", "hex", "input", "int", "isinstance", "iter", "len",
    "list", "map", "max", "min", "next", "oct", "ord", "pow", "print", "property", "range", "repr", "reversed", "round",
    "set", "slice", "sorted", "str", "sum", "tuple", "zip",
}  # fmt: skip
NAMES |= {name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, Exception)}

# Allowed parts of modules: functions without state, and types that cannot be changed.
MODULES = {
    "collections": {"Counter", "OrderedDict", "defaultdict", "deque"},
    "datetime": {"date", "datetime", "time", "timedelta", "timezone"},
    "itertools": {
        "accumulate", "chain", "combinations", "count", "cycle", "groupby", "permutations", "product", "zip_longest",
    },
    "json": {"JSONDecodeError", "dumps", "loads"},
    "math": {
        "ceil", "cos", "e", "exp", "fabs", "factorial", "floor", "gcd", "hypot", "isclose", "isinf", "isnan", "log",
        "log10", "log2", "pi", "pow", "prod", "radians", "sin", "sqrt", "tan", "trunc",
    },
    "re": {
        "DOTALL", "I", "IGNORECASE", "M", "MULTILINE", "S", "compile", "escape", "findall", "finditer", "fullmatch",
        "match", "search", "split", "sub",
    },
    "string": {"ascii_letters", "ascii_lowercase", "ascii_uppercase", "digits", "punctuation", "whitespace"},
    "typing": {"Any", "Callable", "Dict", "Iterable", "List", "Optional", "Sequence", "Set", "Tuple", "Union"},
}  # fmt: skip

# Names of the methods and attributes of the types above. They are allowed on any object.
ATTRIBUTES = {
    name
    for kind in (bool, bytes, dict, float, frozenset, int, list, set, str, tuple)
    for name in dir(kind)
    if not name.startswith("_") and name not in ("format", "format_map")
} | {
    "appendleft", "ascii_letters", "combine", "date", "day", "days", "elements", "end", "fromisoformat", "fromordinal",
    "fromtimestamp", "group", "groupdict", "groups", "hour", "isocalendar", "isoformat", "isoweekday", "max",
    "microsecond", "min", "minute", "month", "most_common", "move_to_end", "now", "popleft", "rotate", "second",
    "seconds", "span", "strftime", "strptime", "subtract", "time", "timedelta", "today", "total_seconds", "utc",
    "utcnow", "weekday", "year",
}  # fmt: skip

# Allowed syntax. Classes are missing because the interpreter calls their methods by itself, and generators because it
# may end them at any later time.
_PLAIN = (
    ast.alias, ast.arg, ast.arguments, ast.boolop, ast.cmpop, ast.comprehension, ast.expr_context, ast.keyword,
    ast.operator, ast.unaryop, ast.ExceptHandler, ast.FormattedValue, ast.JoinedStr, ast.Module,
    ast.AnnAssign, ast.Assert, ast.Assign, ast.AugAssign, ast.Break, ast.Continue, ast.Delete, ast.Expr, ast.For,
    ast.FunctionDef, ast.Global, ast.If, ast.Import, ast.ImportFrom, ast.Nonlocal, ast.Pass, ast.Raise, ast.Return,
    ast.Try, ast.While,
    ast.Attribute, ast.BinOp, ast.BoolOp, ast.Call, ast.Compare, ast.Constant, ast.Dict, ast.DictComp, ast.GeneratorExp,
    ast.IfExp, ast.Lambda, ast.List, ast.ListComp, ast.Name, ast.NamedExpr, ast.Set, ast.SetComp, ast.Slice,
    ast.Starred, ast.Subscript, ast.Tuple, ast.UnaryOp,
)  # fmt: skip


def answer(request: bytes, _output_chars: int) -> tuple[bytes, bool]:
    """Compile a source. Returns the code, or b"" if the source does not compile (the call itself will say why).


    The request is the source as a JSON string. The code comes with a guess whether it changes what later calls of its
    process share. The second value is False: nothing was run.
    """
    try:
        source = json.loads(request)
        tree = ast.parse(source, "<tool>")
        simple = is_simple(tree)
        code = compile(tree, "<tool>", "exec", dont_inherit=True)
        kind, meddles = (SIMPLE, False) if simple else (OTHER, bool(MEDDLES.search(source)))
        return kind + marshal.dumps((code, meddles)), False
    except Exception:  # the compiler may raise anything for hostile text
        return b"", False


def is_simple(module: ast.Module) -> bool:
    """Whether everything in the module is on the lists above."""
    nodes = list(ast.walk(module))
    modules: dict[str, str] = {}  # name in the code -> module
    bound: set[str] = set()
    for node in nodes:
        match node:
            case ast.Import(names=names):
                modules |= {name.asname or name.name: name.name for name in names}
            case ast.ImportFrom(module=source, names=names):
                if node.level or not {name.name for name in names} <= MODULES.get(source or "", set()):
                    return False
                bound |= {name.asname or name.name for name in names}
            case ast.FunctionDef(name=name) | ast.arg(arg=name) | ast.ExceptHandler(name=str(name)):
                bound.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                bound.add(name)
    if not set(modules.values()) <= set(MODULES):
        return False
    if any(name.startswith("__") or name in _FORBIDDEN for name in bound | set(modules)):
        return False  # one scope binds such a name; another scope may still mean the builtin
    apart = {id(part) for node in nodes for part in _checked_with(node, modules)}
    known = bound | NAMES
    return all(id(node) in apart or _is_allowed(node, known, modules) for node in nodes)


_FORBIDDEN = set(dir(builtins)) - NAMES


def _checked_with(node: ast.AST, modules: dict[str, str]) -> list[ast.AST]:
    """Return the nodes that are allowed as part of this node, and nowhere else."""
    match node:
        case ast.Attribute(value=ast.Name(id=name) as module, attr=attribute) if name in modules:
            return [module, node] if attribute in MODULES[modules[name]] and isinstance(node.ctx, ast.Load) else []
        case ast.Call(func=ast.Name(id="type") as function, args=[value], keywords=[]):
            return [] if isinstance(value, ast.Starred) else [function]
        case ast.Call(func=ast.Attribute(value=ast.Constant(value=str(text)), attr="format") as method):
            return [method] if _plain_fields(text) else []
    return []


def _plain_fields(text: str) -> bool:
    """Whether `text.format(...)` uses only whole arguments: no attribute or item of an argument, no nested field."""
    try:
        fields = [(name, spec) for _, name, spec, _ in string.Formatter().parse(text) if name is not None]
    except ValueError:
        return False
    return all((not name or name.isalnum()) and "{" not in (spec or "") for name, spec in fields)


def _is_allowed(node: ast.AST, known: set[str], modules: dict[str, str]) -> Any:
    match node:
        case ast.Attribute(attr=attribute):
            return attribute in ATTRIBUTES and isinstance(node.ctx, ast.Load)  # no attribute of an object is set
        case ast.Name(id=name):
            return name in known and name not in modules  # a module is never used as a value
    return isinstance(node, _PLAIN)
