"""Small changes of a syntax tree, of the kinds that real bugs have."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


COMPARED = {ast.Lt: ast.GtE, ast.Gt: ast.LtE, ast.LtE: ast.Lt, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
COMPARED |= {ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In}
COMPUTED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult}
# Calls whose arguments change no result, or whose sides may be swapped.
QUIET = ("warn", "log", "Error", "add_argument", "print", "info", "Warning")
SYMMETRIC = ("max", "min", "maximum", "minimum", "isclose", "allclose", "equal", "cast", "zip", "suppress")
SYMMETRIC += ("getattr", "setattr", "hasattr", "isinstance", "issubclass", "filter")
PLAIN = ("encoding", "strict", "desc", "stacklevel", "flush", "errors", "exist_ok", "parents", "help", "name")
SKIPPED = (ast.Raise, ast.JoinedStr, ast.Assert)


class Site(NamedTuple):
    """A place in a file and what stands there instead."""

    kind: str
    line: int
    begin: int  # bytes
    end: int
    new: ast.expr

    def applied(self, source: str) -> str:
        """Return the source with the change."""
        data, new = source.encode(), ast.unparse(ast.fix_missing_locations(self.new))
        return (data[: self.begin] + f"({new})".encode() + data[self.end :]).decode()

    def words(self, source: str) -> str:
        """Return the change in one line."""
        old = " ".join(source.encode()[self.begin : self.end].decode().split())
        return f"{old}  ->  {ast.unparse(ast.fix_missing_locations(self.new))}"


def sites(path: Path) -> list[Site]:
    """Return every mutation of a file."""
    source = path.read_text("utf-8")
    starts = [0]
    for line in source.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    return [
        Site(
            kind, node.lineno, starts[node.lineno - 1] + node.col_offset,
            starts[node.end_lineno - 1] + node.end_col_offset, new,
        )
        for kind, node, new in _found(ast.parse(source))
    ]  # fmt: skip


def _found(tree: ast.AST) -> Iterator[tuple[str, ast.expr, ast.expr]]:
    for name, child in ast.iter_fields(tree):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for node in child if isinstance(child, list) else [child]:
            if not isinstance(node, ast.AST) or isinstance(node, SKIPPED):
                continue
            if isinstance(node, ast.Call) and any(word in ast.unparse(node.func) for word in QUIET):
                continue
            if isinstance(node, ast.If):
                if "TYPE_CHECKING" in ast.unparse(node.test):
                    continue
                yield from (("condition without effect", node.test, ast.Constant(value)) for value in (True, False))
            if isinstance(node, ast.expr):
                yield from ((kind, node, new) for kind, new in _mutants(node))
            yield from _found(node)


def _mutants(node: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    match node:
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in COMPARED:
            yield "comparison", ast.Compare(left, [COMPARED[type(op)]()], [right])
        case ast.BinOp(left=left, op=op, right=right) if type(op) in COMPUTED and not _is_text(left, right):
            yield "sign", ast.BinOp(left, COMPUTED[type(op)](), right)
        case ast.UnaryOp(op=ast.USub() | ast.Not(), operand=operand):
            yield "sign", operand
        case ast.BoolOp(op=op, values=values):
            for i in range(len(values)):
                rest = values[:i] + values[i + 1 :]
                yield "dropped condition", rest[0] if len(rest) == 1 else ast.BoolOp(op, rest)
        case ast.IfExp(test=test, body=body, orelse=other):
            yield "condition without effect", body
            yield "condition without effect", other
            yield "swapped branches", ast.IfExp(test, other, body)
        case ast.Call():
            yield from _calls(node)
        case ast.Subscript(value=value, slice=ast.Constant(value=int(index))):
            yield "index", ast.Subscript(value, ast.Constant(1 - index if index in (0, 1) else index - 1), ast.Load())
        case ast.Subscript(value=value, slice=ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=1))):
            yield "index", ast.Subscript(value, ast.Constant(0), ast.Load())
        case ast.Constant(value=bool(value)):
            yield "constant", ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield "constant", ast.Constant(1 - value if value in (0, 1) else value * 2)


def _calls(node: ast.Call) -> Iterator[tuple[str, ast.expr]]:
    func, args, keywords = node.func, node.args, node.keywords
    for k in keywords:
        rest = [each for each in keywords if each is not k]
        if k.arg in ("dim", "axis") and isinstance(k.value, ast.Constant | ast.UnaryOp):
            other = ast.keyword(k.arg, ast.Constant(0 if ast.unparse(k.value) != "0" else 1))
            yield "axis", ast.Call(func, args, [*rest, other])
        if k.arg and k.arg not in PLAIN:
            yield "argument without effect", ast.Call(func, args, rest)
    sides = len(args) >= 2 and all(isinstance(a, ast.Name | ast.Attribute | ast.Subscript) for a in args[:2])
    if sides and ast.unparse(func).rsplit(".", 1)[-1] not in SYMMETRIC:
        yield "swapped arguments", ast.Call(func, [args[1], args[0], *args[2:]], keywords)


def _is_text(*nodes: ast.expr) -> bool:
    return any(isinstance(n, ast.JoinedStr) or isinstance(getattr(n, "value", None), str) for n in nodes)
