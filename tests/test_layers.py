"""The walls: who may import whom, and a few habits no reviewer should have to look for.

Reads source with ``ast``; nothing of the project is imported except in the two subprocess tests at the end.
"""

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("core", "api", "worker", "cli", "migrations")
HTTP = {"fastapi", "starlette", "uvicorn"}
TENSORS = {"torch", "transformers", "peft", "accelerate"}

# Top-level names that a package's modules must not import, at any depth, inside functions or under TYPE_CHECKING.
FORBIDDEN = {
    "core": HTTP | TENSORS | {"api", "worker", "cli", "migrations"},
    "api": TENSORS | {"worker", "cli", "migrations"},
    "worker": HTTP | {"api", "cli", "migrations"},
    "cli": TENSORS | {"migrations"},
    "migrations": HTTP | TENSORS | {"api", "worker", "cli"},
}


def module_name(path: Path, root: Path = ROOT) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources(*packages: str) -> list[Path]:
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


def imports(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[str, list[str], int]]:
    """Every import of a module: the dotted name, the names taken from it, the line; relative ones made absolute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, [], node.lineno
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                package = module.split(".") if is_package else module.split(".")[:-1]
                package = package[: len(package) - (node.level - 1)]
                origin = ".".join([*package, origin] if origin else package)
            yield origin, [alias.name for alias in node.names], node.lineno


def at_import_time(tree: ast.Module) -> ast.Module:
    """The module without what runs later (function bodies) or never (``if TYPE_CHECKING``)."""

    class Prune(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
            return ast.copy_location(ast.Pass(), node)

        def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
            return ast.copy_location(ast.Pass(), node)

        def visit_If(self, node: ast.If) -> ast.AST:
            if "TYPE_CHECKING" in ast.dump(node.test):
                return ast.copy_location(ast.Pass(), node)
            return self.generic_visit(node)

    pruned = Prune().visit(ast.parse(ast.unparse(tree)))
    assert isinstance(pruned, ast.Module)
    return pruned


def breaches(source: str, path: str) -> list[str]:
    """Lines of ``source`` that import over a wall."""
    module = module_name(ROOT / path)
    forbidden = FORBIDDEN[module.split(".")[0]]
    found = imports(ast.parse(source), module, is_package=path.endswith("__init__.py"))
    # "from .. import api" has no origin of its own: its top-level names are those it takes.
    tops = {(line, name.split(".")[0]) for origin, taken, line in found for name in ([origin] if origin else taken)}
    return [f"{path}:{line} imports {top}" for line, top in sorted(tops) if top in forbidden]


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """One import loop as a list of modules, first and last the same, or an empty list."""
    done: set[str] = set()

    def visit(node: str, trail: list[str]) -> list[str]:
        if node in trail:
            return [*trail[trail.index(node) :], node]
        if node in done:
            return []
        for target in sorted(graph.get(node, ())):
            if loop := visit(target, [*trail, node]):
                return loop
        done.add(node)
        return []

    for start in sorted(graph):
        if loop := visit(start, []):
            return loop
    return []


def test_imports_go_downwards() -> None:
    """cli -> {api, worker} -> core.

    The bug behind it: one convenience import of the worker in a route puts two gigabytes of torch into the API's
    image and its seconds into every start of it; one of FastAPI in core makes a training worker a web server.
    """
    found = [line for path in sources(*PACKAGES) for line in breaches(path.read_text(), str(path.relative_to(ROOT)))]
    assert not found, "\n".join(found)


def test_every_source_file_belongs_to_a_package_the_wheel_carries() -> None:
    """The bug behind it: an editable install finds folders without ``__init__.py``, and setuptools leaves them out."""
    homeless = [
        str(path.relative_to(ROOT)) for path in sources(*PACKAGES) if not (path.parent / "__init__.py").exists()
    ]
    assert not homeless, f"no __init__.py beside: {homeless}"


def test_no_import_loops() -> None:
    """Between modules, counting only what runs while a module is imported.

    The bug behind it: a loop works until somebody imports the other end first, in a worker, at night.
    """
    modules = {module_name(path): path for path in sources(*PACKAGES)}
    graph: dict[str, set[str]] = defaultdict(set)
    for module, path in modules.items():
        tree = at_import_time(ast.parse(path.read_text()))
        for origin, taken, _ in imports(tree, module, is_package=path.name == "__init__.py"):
            # "from core.services import jobs" depends on the module jobs, not on what the package itself defines.
            submodules = {f"{origin}.{name}" for name in taken} & modules.keys()
            whole = {origin} if len(submodules) < len(taken) or not taken else set()
            graph[module] |= (submodules | whole & modules.keys()) - {module}
    assert cycle(graph) == []


def test_no_dependency_ships_a_package_of_our_names() -> None:
    """The bug behind it: plain top-level names. A dependency that also ships ``core`` wins or loses by the order of
    sys.path, and then half of our modules are gone on somebody's machine only.
    """
    owners = packages_distributions()
    taken = {name: [dist for dist in owners.get(name, []) if dist != "attune"] for name in PACKAGES}
    assert not any(taken.values()), taken


def habits(source: str, path: str) -> list[str]:
    """Breaches of three habits, as ``path:line sentence``.

    * A module says what it is: one without a docstring is read from the middle.
    * No bare ``except:``. It also catches KeyboardInterrupt and SystemExit, so a worker can't be stopped.
    * No ``print`` to standard output in services: in the API it is lost, and in a worker's child it would mix with
      the line protocol that the supervisor reads there. Processes log; only the command line prints.
    """
    tree = ast.parse(source)
    found = []
    if source.strip() and ast.get_docstring(tree) is None:
        found.append(f"{path}:1 has no docstring")
    speaks = path.startswith(("cli/", "migrations/", "examples/", "scripts/", "bench/"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            found.append(f"{path}:{node.lineno} catches everything with a bare except")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print" and not speaks:
            elsewhere = "file" in {keyword.arg for keyword in node.keywords}
            found += [] if elsewhere else [f"{path}:{node.lineno} prints"]
    return found


def test_habits() -> None:
    found = [
        line
        for path in sources(*PACKAGES, "examples", "scripts", "bench")
        for line in habits(path.read_text(), str(path.relative_to(ROOT)))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("source", "path", "said"),
    [
        ("import worker.runner", "api/main.py", "api/main.py:1 imports worker"),
        ("from worker import runner", "api/main.py", "api/main.py:1 imports worker"),
        ("def f():\n    import torch", "core/ids.py", "core/ids.py:2 imports torch"),
        ("from ..api import auth", "worker/train/loop.py", ""),
        ("from ...api import auth", "worker/train/loop.py", "worker/train/loop.py:1 imports api"),
        ("from ... import api", "worker/train/loop.py", "worker/train/loop.py:1 imports api"),
        ("from core import ids\nimport os", "api/main.py", ""),
        ("import apiary", "worker/tasks.py", ""),
    ],
)
def test_the_wall_sees_what_it_should(source: str, path: str, said: str) -> None:
    assert breaches(source, path) == ([said] if said else [])


@pytest.mark.parametrize(
    ("source", "path", "said"),
    [
        ("x = 1", "core/ids.py", "core/ids.py:1 has no docstring"),
        (
            '"""Doc."""\ntry:\n    pass\nexcept:\n    pass',
            "core/ids.py",
            "core/ids.py:4 catches everything with a bare except",
        ),
        ('"""Doc."""\nprint(1)', "worker/train/loop.py", "worker/train/loop.py:2 prints"),
        ('"""Doc."""\nprint(1, file=sys.stderr)', "worker/train/loop.py", ""),
        ('"""Doc."""\nprint(1)', "cli/main.py", ""),
        ("", "core/db/__init__.py", ""),
    ],
)
def test_the_linter_sees_what_it_should(source: str, path: str, said: str) -> None:
    assert habits(source, path) == ([said] if said else [])


def test_a_loop_is_found() -> None:
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}}) == []


RENDERING = {"core.formats.templates", "core.formats.sandbox"}
MAY_RENDER = ("core.formats", "worker.prepare")


def renderers(source: str, path: str) -> list[str]:
    """Lines that import what renders chat templates where nothing limits them."""
    module = module_name(ROOT / path)
    if module.startswith(MAY_RENDER):
        return []
    found = imports(ast.parse(source), module, is_package=path.endswith("__init__.py"))
    return [
        f"{path}:{line} imports {name}"
        for origin, taken, line in found
        for name in {origin, *(f"{origin}.{one}" for one in taken)} & RENDERING
    ]


def test_templates_are_rendered_by_the_prepare_child_alone() -> None:
    """A template is a user's program, and only that process has limits on time, memory and output.

    The bug behind it: a preview that renders in a route, and one `{% for %}` stops the API for everybody.
    """
    paths = [(path.read_text(), str(path.relative_to(ROOT))) for path in sources(*PACKAGES)]
    found = [line for source, path in paths for line in renderers(source, path)]
    assert not found, "\n".join(found)
    assert renderers("from core.formats import rows, templates", "api/routes/files.py")
    assert renderers("def f():\n    from core.formats.templates import Template", "core/services/files.py")
    assert not renderers("from core.formats import families", "api/routes/files.py")


@pytest.mark.parametrize("module", ["api.main", "worker.runner"])
def test_neither_the_api_nor_a_supervisor_loads_what_renders(module: str) -> None:
    """What the imports of single files can't show: a way through some other module."""
    assert not modules_after(module) & RENDERING


def modules_after(module: str) -> set[str]:
    """sys.modules after importing ``module`` in a fresh interpreter."""
    code = f"import {module}, sys; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def loaded_after(module: str) -> set[str]:
    """The top-level names of those modules."""
    return {name.split(".")[0] for name in modules_after(module)}


def test_the_api_starts_without_torch() -> None:
    """What the walls can't see: a dependency of ours that imports torch by itself, as optional integrations do."""
    assert not loaded_after("api.main") & TENSORS


def test_the_worker_starts_without_fastapi() -> None:
    """The same from the other side; torch too belongs to the children, never to their supervisor."""
    assert not loaded_after("worker.runner") & (HTTP | {"torch"})
