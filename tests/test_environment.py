"""One list of dependencies: pyproject.toml, constraints.txt, environment.yml, the Makefile and the code agree."""

import ast
import importlib.metadata
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from vr1lib.workbench.cli import parser
from vr1lib.workbench.params import load_parameters

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIRED = [Requirement(line) for line in PROJECT["dependencies"]]
DEV = [Requirement(line) for line in PROJECT["optional-dependencies"]["dev"]]
CONSTRAINTS = [
    line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#")
]
TESTED = {canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in CONSTRAINTS)}


@pytest.mark.parametrize("requirement", [*REQUIRED, *DEV], ids=str)
def test_tested_version_lies_in_the_declared_range(requirement):
    assert TESTED[canonicalize_name(requirement.name)] in requirement.specifier


def test_constraints_pin_every_package_exactly_and_name_no_place():
    assert all(re.fullmatch(r"[a-z0-9.-]+==[0-9][0-9a-z.]*", line) for line in CONSTRAINTS)
    assert CONSTRAINTS == sorted(CONSTRAINTS)


def test_constraints_hold_everything_that_the_dependencies_pull_in():
    waiting, seen = [*REQUIRED, *DEV], set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if (name, *requirement.extras) in seen:
            continue
        seen.add((name, *requirement.extras))
        for line in importlib.metadata.requires(name) or []:
            inner = Requirement(line)
            wanted = [{"extra": extra} for extra in ("", *requirement.extras)]
            if inner.marker is None or any(inner.marker.evaluate(environment) for environment in wanted):
                waiting.append(inner)
    missing = {name for name, *_ in seen} - set(TESTED)
    assert not {name for name in missing if not name.startswith(("nvidia-", "cuda-", "triton"))}, missing


def test_every_import_is_a_declared_dependency():
    providers = importlib.metadata.packages_distributions()
    for folder, allowed in (("vr1lib", REQUIRED), ("tests", [*REQUIRED, *DEV])):
        names = {canonicalize_name(requirement.name) for requirement in allowed}
        names |= {canonicalize_name(Requirement(line).name) for line in extras(folder)}
        for path in (ROOT / folder).rglob("*.py"):
            for package in imported_packages(path) - set(sys.stdlib_module_names) - {"vr1lib"} - siblings(path):
                distributions = {canonicalize_name(name) for name in providers.get(package, [package])}
                assert distributions & names, (
                    f"{path.relative_to(ROOT)} imports {package}: declare it in pyproject.toml"
                )


def extras(folder):
    groups = PROJECT["optional-dependencies"]
    return [line for group, lines in groups.items() if group != "dev" for line in lines] if folder == "vr1lib" else []


def siblings(path):
    return {other.stem for other in path.parent.glob("*.py")}


def imported_packages(path):
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_conda_way_in_leaves_python_packages_to_pyproject():
    parts = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    system = [part for part in parts if isinstance(part, str)]
    (pip,) = [part["pip"] for part in parts if isinstance(part, dict)]
    assert pip == ["-c constraints.txt", "-e .[dev]"]
    python = next(part for part in system if part.startswith("python"))
    oldest = str(SpecifierSet(PROJECT["requires-python"])).removeprefix(">=")
    assert f">={oldest}," in python
    names = {canonicalize_name(requirement.name) for requirement in [*REQUIRED, *DEV]}
    assert not names & {canonicalize_name(re.split(r"[<>=]", part)[0]) for part in system}


def demo_lines():
    """The arguments of each `vr1 run` of `make demo`."""
    done = subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stdout.replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if "/vr1 run" in line]


def test_make_demo_runs_the_whole_chain_in_order():
    benchmarks = ["40_benchmark"] * 3
    stems = [arguments[1] for arguments in demo_lines()]
    assert stems == ["00_base_model", "10_data_building", "20_cold_sft", "30_ptst_grpo", *benchmarks, "50_analysis"]


def test_make_demo_reads_only_what_it_has_made_before(monkeypatch):
    monkeypatch.chdir(ROOT)
    made, labels = set(), []
    for arguments in demo_lines():
        options = parser().parse_args(arguments)
        named = [("run", options.name)] if options.name else []
        params = load_parameters(options.stem, options.files, [*options.overrides, *named])
        read = re.findall(r"outputs/(\w+/\w+)", params.to_yaml())
        assert set(read) <= made, f"{arguments}: {set(read) - made} is not made before"
        assert (options.stem in ("00_base_model", "10_data_building")) or read
        made.add(f"{options.stem}/{params.run}")
        labels += [params.label] if options.stem == "40_benchmark" else []
    assert labels == ["base", "CI", "Vision-R1"] and "50_analysis/demo" in made
