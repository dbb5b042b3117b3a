"""What this house agreed on, as far as a program can see it."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bascule.errors import BasculeError, Exit, catalogue

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (ROOT / "agent" / "bascule", ROOT / "omaha-mock" / "omaha_mock")
SOURCES = sorted(path for package in PACKAGES for path in package.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
BUILDERS = sorted((ROOT / "fixtures").rglob("*.py"))
EVERYTHING = SOURCES + TESTS + BUILDERS

FOLDERS = {".ci", "agent", "docs", "fixtures", "omaha-mock", "systemd", "tests"}
NAMELESS = re.compile(r"(^|_)(utils?|common|helpers?|managers?|misc)$", re.IGNORECASE)
NO_IO = {"asyncio", "os", "socket", "subprocess", "pathlib", "time", "threading", "logging"}
FOR_EVER = 30.0
"""Seconds from which on a sleep stands for something that hangs, not for a guess at a duration."""


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    done = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("this is no git checkout")
    names = [name for name in done.stdout.decode().split("\0") if name]
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def test_top_level_folders_are_the_agreed_ones(tracked: list[Path]) -> None:
    parts = [path.relative_to(ROOT).parts for path in tracked]
    assert {first for first, *rest in parts if rest} == FOLDERS


@pytest.mark.parametrize("path", EVERYTHING, ids=name_of)
def test_every_thing_has_a_name_of_its_own(path: Path) -> None:
    """A module called `utils` says nothing; neither does a `SlotManager`.

    `Manager` alone is the name of other people's D-Bus interfaces."""
    assert not NAMELESS.search(path.stem)
    split = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ClassDef) and node.name.strip("_") != "Manager":
            assert not NAMELESS.search(split.sub("_", node.name)), f"class {node.name}"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "agent/bascule/formats").rglob("*.py")), ids=name_of
)
def test_the_ground_does_no_input_or_output(path: Path) -> None:
    """In functions too, where the import contract looks as well; and `open` needs no import."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & NO_IO
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in NO_IO
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"open", "print", "input", "exec", "eval"}, node.lineno


def documented_elsewhere() -> set[str]:
    """Methods that a documented Protocol describes; their makers need not repeat it."""
    names = set()
    for path in SOURCES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef) and any(
                isinstance(base, ast.Name) and base.id == "Protocol" for base in node.bases
            ):
                names |= {
                    member.name
                    for member in node.body
                    if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef)
                    and ast.get_docstring(member)
                }
    return names


def undocumented(body: list[ast.stmt], methods: bool, known: set[str]) -> Iterator[str]:
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if node.name.startswith("_") or node.name in known:
            continue
        if ast.get_docstring(node) is None:
            yield node.name
        if methods and isinstance(node, ast.ClassDef):
            yield from (f"{node.name}.{name}" for name in undocumented(node.body, True, known))


def test_what_is_public_says_what_it_is() -> None:
    """Modules and classes everywhere; functions and methods below the faces, whose verbs are
    described in the table that also makes the help and the manual pages."""
    known = documented_elsewhere()
    silent = []
    for path in SOURCES:
        module = tree(path)
        if ast.get_docstring(module) is None:
            silent.append(name_of(path))
        below = path.relative_to(ROOT).parts[2] in ("formats", "engine", "updater")
        body = module.body if below else [n for n in module.body if isinstance(n, ast.ClassDef)]
        silent += [f"{name_of(path)}: {name}" for name in undocumented(body, below, known)]
    assert not silent


@pytest.mark.parametrize("path", EVERYTHING, ids=name_of)
def test_no_error_is_swallowed_whole(path: Path) -> None:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}: bare except"
            if isinstance(node.type, ast.Name) and node.type.id == "BaseException":
                # Whoever catches everything gives it on, or keeps it for whoever asks.
                kept = node.name is not None or any(
                    isinstance(n, ast.Raise) for n in ast.walk(node)
                )
                assert kept, f"line {node.lineno}: BaseException is dropped"


@pytest.mark.parametrize("path", EVERYTHING, ids=name_of)
def test_every_exception_to_a_rule_names_the_rule(path: Path) -> None:
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if path != Path(__file__):
            assert not re.search(r"#\s*type:\s*ignore(?!\[[a-z-]+)", line), number
            assert not re.search(r"#\s*noqa(?!: ?[A-Z]+[0-9]+)", line, re.IGNORECASE), number
            assert not re.search(r"#\s*(ruff|mypy):\s*(noqa|ignore-errors)\s*$", line), number


def sleeps(path: Path) -> Iterator[tuple[int, float]]:
    """Sleeps of a fixed, positive length that no loop repeats until something is so."""

    def visit(node: ast.AST, looped: bool) -> Iterator[tuple[int, float]]:
        looped = looped or isinstance(node, ast.While | ast.For | ast.AsyncFor)
        if isinstance(node, ast.Call) and node.args and not looped:
            called = node.func
            sleeper = isinstance(called, ast.Attribute) and called.attr == "sleep"
            length = node.args[0]
            if (
                sleeper
                and isinstance(called, ast.Attribute)
                and isinstance(called.value, ast.Name)
                and called.value.id in ("time", "asyncio")
                and isinstance(length, ast.Constant)
                and isinstance(length.value, int | float)
                and 0 < length.value < FOR_EVER
            ):
                yield node.lineno, float(length.value)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, looped)

    yield from visit(tree(path), False)


@pytest.mark.parametrize("path", [p for p in TESTS if p.name.startswith("test_")], ids=name_of)
def test_no_test_hopes_that_a_while_is_enough(path: Path) -> None:
    assert list(sleeps(path)) == []


CLOCKS = re.compile(r"\b(elapsed|took|duration|seconds_taken)\b|perf_counter\(\)|monotonic\(\)")


@pytest.mark.parametrize("path", [p for p in TESTS if p.name.startswith("test_")], ids=name_of)
def test_no_test_holds_a_stopwatch(path: Path) -> None:
    """A busy machine would fail it. Count bytes and calls instead. A deadline inside a loop that waits
    for something is patience, not a measurement."""
    module = tree(path)
    waiting = {
        n for loop in ast.walk(module) if isinstance(loop, ast.While) for n in ast.walk(loop)
    }
    for node in ast.walk(module):
        if (
            node not in waiting
            and isinstance(node, ast.Assert)
            and isinstance(node.test, ast.Compare)
        ):
            bounded = any(isinstance(op, ast.Lt | ast.LtE) for op in node.test.ops)
            assert not (bounded and CLOCKS.search(ast.unparse(node.test))), node.lineno


@pytest.mark.parametrize("cls", list(catalogue()), ids=lambda cls: str(cls.id))
def test_every_error_has_number_id_cause_and_remedy(cls: type[BasculeError]) -> None:
    assert cls.number > 0
    assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", cls.id)
    assert cls.exit in Exit
    for sentence in (cls.cause, cls.remedy):
        assert sentence[0].isupper() or sentence[0] in "`/"
        assert sentence.endswith((".", ")"))
    if cls is not BasculeError:
        assert cls.remedy != BasculeError.remedy or cls.cause != BasculeError.cause
    assert str(cls("what was seen")).endswith("what was seen")
    assert set(cls().as_dict()) >= {"id", "number", "message", "remedy", "exit", "context"}


def test_no_two_errors_share_an_id() -> None:
    ids = [cls.id for cls in catalogue()]
    assert sorted(ids) == sorted(set(ids))
    assert len({cls.message_id() for cls in catalogue()}) == len(ids)


def test_every_error_has_an_id_or_is_a_branch() -> None:
    """A class without an id of its own would be told under its parent's name."""

    def below(cls: type[BasculeError]) -> Iterator[type[BasculeError]]:
        for child in cls.__subclasses__():
            yield child
            yield from below(child)

    ours = [cls for cls in below(BasculeError) if cls.__module__.startswith("bascule.")]
    assert ours
    nameless = [c.__qualname__ for c in ours if "id" not in c.__dict__ and not c.__subclasses__()]
    assert not nameless


def test_make_targets_that_are_named_exist() -> None:
    made = "".join(
        path.read_text() for path in (ROOT / "Makefile", ROOT / "systemd" / "install.mk")
    )
    targets = set(re.findall(r"^([a-z][a-z-]*)\s*:(?!=)", made, re.MULTILINE))
    named: dict[str, str] = {}
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "agent").rglob("*.md")]
    for page in pages:
        for found in re.finditer(r"(?:`|^\s*|\$ )make ([a-z][a-z-]+)", page.read_text(), re.M):
            named.setdefault(found[1], name_of(page))
    for found in re.finditer(r"echo 'make ([a-z-]+)", made):
        named.setdefault(found[1], "make help")
    assert {"demo", "test"} <= set(named)
    assert {target: page for target, page in named.items() if target not in targets} == {}
    phony = " ".join(re.findall(r"^\.PHONY:(.*)$", made, re.MULTILINE)).split()
    assert set(phony) <= targets


# This machine's own paths, and where packages come from: neither is anybody else's business.
PRIVATE = re.compile(
    r"(?<![\w.])/work/|(?<![\w.])/home/[a-z]+/|/opt/(wheels|pypi)|\b(index-url|find-links)\b"
    r"|\b(pypi\.org|pythonhosted\.org|registry\.npmjs\.org|proxy\.golang\.org|deb\.debian\.org)\b"
)


def test_nothing_tells_where_it_was_made(tracked: list[Path]) -> None:
    told = []
    for path in tracked:
        if path == Path(__file__).resolve():
            continue
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            if PRIVATE.search(line.decode(errors="replace")):
                told.append(f"{name_of(path)}:{number}")
    assert not told


def test_nothing_that_is_made_is_tracked(tracked: list[Path]) -> None:
    """Images, payloads and keys are built; what is tracked is small."""
    big = [name_of(path) for path in tracked if path.stat().st_size > 400_000]
    assert not big
    assert not [name_of(p) for p in tracked if p.suffix in (".img", ".bin", ".pem", ".pyc", ".gpg")]
