"""Imports go down only, and the ground floor is plain Python."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "vr1lib"
FLOORS = {"models": 1, "data": 1, "benchmarks": 1, "training": 2, "analysis": 2, "workbench": 3}
WITH_TORCH = {"vr1lib.advantage", "vr1lib.loss"}  # of the ground floor


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py") if path.name != "__main__.py"}
GROUND = sorted(name for name in MODULES if name.count(".") == 1 and name.split(".")[1] not in FLOORS)


def floor(module):
    room = module.split(".")[1] if "." in module else ""
    return FLOORS.get(room, 0)


def imports(path, everywhere=True):
    """The project's modules that a file imports; without `everywhere`, only when it is itself imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write it in full"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {name for name in found if name in MODULES}


def test_every_room_has_a_floor():
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert rooms == set(FLOORS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module):
    upward = [name for name in imports(MODULES[module]) if floor(name) > floor(module)]
    assert not upward, f"{module} on floor {floor(module)} imports {upward}"


def test_no_module_imports_itself_around_a_corner():
    order = TopologicalSorter({name: imports(path, everywhere=False) - {name} for name, path in MODULES.items()})
    assert list(order.static_order())  # raises CycleError, naming the modules


def test_ground_floor_is_the_method():
    assert {f"vr1lib.{name}" for name in "records answers reward schedule prompts advantage loss".split()} <= set(
        GROUND
    )


@pytest.mark.parametrize(
    "module",
    [*(name for name in GROUND if name not in WITH_TORCH), "vr1lib.workbench.cli", "vr1lib.workbench.tracking"],
)
def test_module_imports_without_torch(module):
    heavy = ("torch", "transformers", "accelerate", "wandb")
    code = f"import sys, {module}; print(*[name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("module", sorted(WITH_TORCH))
def test_arithmetic_takes_tensors_and_numbers_and_nothing_else(module):
    assert not imports(MODULES[module])
