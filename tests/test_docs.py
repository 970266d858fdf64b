"""What the pages say is there: links, files, functions, commands, parameters."""

import ast
import re
import shlex
from pathlib import Path

import nbformat
import pytest
import yaml
from test_layers import FLOORS

from vr1lib.workbench import cli, parameters_doc
from vr1lib.workbench.params import PARAMETERS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "outputs/README.md", "notebooks/README.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
PATH = re.compile(r"[\w.-]+(/[\w.-]+)*(/|\.(py|md|yaml|toml|txt|csv|ipynb|js))")
STANDS_FOR_OTHERS = re.compile(
    r"\b(STEM|RUN|NAME|MODEL|MODULE|FILE|OUT|DIR|BENCHMARK|YOURS)\b|[…*<>{}$|]|mine|my_|_MODULE"
)
OF_RUNS = ("outputs/", "checkpoints/", "figures/", "logs/", "bad_steps/", "images/", "sweeps/", "tables/", "wandb/")
OF_OTHERS = {
    "notebook.ipynb",
    "wemath/",
    "mathvision/",
    "config.json",
    "model/",
    "params.yaml",
    "sweep.yaml",
    "failures.md",
}
EXAMPLES = {"utils.py", "vr1lib/benchmarks/signs.py", "format_tenth", "qwen3_vl_moe", "num_experts"}
EXAMPLES |= {"num_experts_per_tok", "moe_intermediate_size"}  # none of them there, on purpose
SOURCES = [path for top in ("vr1lib", "tests", "bench") for path in sorted((ROOT / top).rglob("*.py"))]
PARAMETER_NAMES = {name for model in PARAMETERS.values() for name in model.model_fields}
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def prose_of(page: Path) -> str:
    """The page without its blocks of code."""
    text = re.sub(r"^```.*?^```", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^ {4}.*$", "", text, flags=re.MULTILINE)


def commands_of(page: Path) -> list[str]:
    """The command lines of `vr1` in the page, in blocks and in spans, comments and optional parts taken off."""
    lines = text_of(page).replace("\\\n", " ").splitlines()
    found = [line.split("=>")[0] for line in lines if line.startswith(("    ", "$ "))]
    found += [span for line in lines if not line.startswith("    ") for span in SPAN.findall(line)]
    commands = []
    for line in found:
        for part in re.split(r"&&|;", re.sub(r"\s#.*$", "", line)):
            part = re.sub(r"^\s*(\$|srun|done|do|else|then|=>)\s", "", part.strip()).strip()
            if match := re.match(r"(?:\.venv/bin/)?vr1 ((?!sync|dashboard)[a-z]+ .*)", part):
                commands.append(re.sub(r" \[(-[^\]]*)\](?=\s|$)", r" \1", match[1]))
    return commands


def file_named(name: str, page: Path) -> Path | None:
    """The file or folder that a page means by `name`."""
    folders = (ROOT, ROOT / "vr1lib", ROOT / "vr1lib" / "data", ROOT / "tests", page.parent)
    if found := next((folder / name for folder in folders if (folder / name).exists()), None):
        return found
    tops = () if "/" in name.rstrip("/") else ("vr1lib", "tests", "bench", "docs")
    return next((path for top in tops for path in (ROOT / top).rglob(name)), None)


def definitions(path: Path) -> set[str]:
    """Functions, classes and named values of a Python file."""
    nodes = list(ast.walk(ast.parse(text_of(path))))
    named = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    return named | {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


@pages
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if link.startswith("http"):
            continue
        target, _, anchor = link.partition("#")
        file = page.parent / target if target else page
        assert file.exists(), f"{page.name}: {link}"
        headings = (
            [line.lstrip("#").strip().lower() for line in text_of(file).splitlines() if line[:1] == "#"]
            if anchor
            else []
        )
        anchors = {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}
        assert not anchor or anchor in anchors, f"{page.name}: {link}"


@pages
def test_files_that_are_named_are_there(page):
    for span in SPAN.findall(prose_of(page)):
        if PATH.fullmatch(span) and not STANDS_FOR_OTHERS.search(span) and not span.startswith(OF_RUNS):
            assert span in OF_OTHERS | EXAMPLES or file_named(span, page), f"{page.name}: no {span}"


@pages
def test_functions_are_in_the_files_that_they_are_said_to_be_in(page):
    for names, file in re.findall(r"((?:`\w+`(?:,| and|) )+)in `([\w/]+\.py)`", prose_of(page)):
        path = file_named(file, page)
        assert path, f"{page.name}: no {file}"
        missing = set(re.findall(r"`(\w+)`", names)) - definitions(path)
        assert not missing, f"{page.name}: {file} has no {', '.join(sorted(missing))}"


def test_words_with_underscores_are_names_in_the_code():
    code = " ".join(map(text_of, SOURCES)) + " ".join(map(text_of, (ROOT / "params").rglob("*.yaml")))
    known = set(re.findall(r"\w+", code)) | {path.stem for path in (ROOT / "params").rglob("*.yaml")} | set(PARAMETERS)
    for page in PAGES:
        named = {span for span in SPAN.findall(prose_of(page)) if re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)+", span)}
        assert not named - known - EXAMPLES, f"{page.name}: {sorted(named - known)}"


def test_tests_that_are_named_are_tests():
    tests = set().union(*(definitions(path) for path in (ROOT / "tests").glob("test_*.py")))
    for page in PAGES:
        named = set(re.findall(r"`(test_\w+)`", text_of(page)))
        assert not named - tests - PARAMETER_NAMES, f"{page.name}: {sorted(named - tests)}"


@pages
def test_commands_parse(page):
    for command in commands_of(page):
        words = [re.sub(r"(?<=\w)\|.*", "", word) for word in shlex.split(command)]  # hf|easyr1: the first
        try:
            options = cli.parse(words)
        except SystemExit as refused:
            pytest.fail(f"{page.name}: vr1 {command}: exit {refused.code}")
        stem, written = getattr(options, "stem", None), f"{page.name}: vr1 {command}"
        names = set(PARAMETERS[stem].model_fields) if stem in PARAMETERS else PARAMETER_NAMES
        assert stem in (None, "STEM", "$stem", "…", *PARAMETERS), written
        assert not {key for key, _ in getattr(options, "overrides", ())} - names, written
        for file in [*getattr(options, "files", ()), getattr(options, "file", None)]:
            if file and file.startswith("params/") and not STANDS_FOR_OTHERS.search(file):
                assert (ROOT / file).exists(), written


def test_the_commands_of_a_page_are_found(tmp_path):
    page = tmp_path / "page.md"
    block = "    vr1 run STEM \\\n        -p seed 1 [--resume]  # one\n    a && .venv/bin/vr1 doctor -f X\n"
    page.write_text(f"Say `vr1 stats FILE`.\n\n{block}")
    assert sorted(commands_of(page)) == ["doctor -f X", "run STEM          -p seed 1 --resume", "stats FILE"]


@pages
def test_parameters_that_are_named_are_parameters(page):
    if page.name in ("metrics.md", "parameters.md"):
        return
    for name in re.findall(r"`([a-z]+(?:_[a-z]+)*): [^`]+`", prose_of(page)):
        assert name in PARAMETER_NAMES | {"golds", "rewards"}, f"{page.name}: {name}"


def test_the_page_of_parameters_is_fresh():
    again = "python -m vr1lib.workbench.parameters_doc > docs/parameters.md"
    assert text_of(ROOT / "docs" / "parameters.md") == parameters_doc.page(), f"run {again}"


def test_the_page_of_parameters_has_each_of_them_in_its_notebooks_section():
    parts = dict(re.findall(r"^## `?(.+?)`?\n(.*?)(?=^## |\Z)", parameters_doc.page(), re.MULTILINE | re.DOTALL))
    shared = {title: set(re.findall(r"^\| `(\w+)` \|", part, re.MULTILINE)) for title, part in parts.items()}
    for stem, model in PARAMETERS.items():
        training = shared["Both training notebooks"] if stem[:2] in ("20", "30") else set()
        assert shared["Every notebook"] | training | shared[stem] == set(model.model_fields)


def test_the_architecture_page_has_the_floors_of_the_test():
    rows = re.findall(r"^\| (\d) \| (.+?) \|", text_of(ROOT / "docs" / "architecture.md"), re.MULTILINE)
    told = {room: int(floor) for floor, rooms in rows for room in re.findall(r"`(\w+)/`", rooms)}
    assert told == FLOORS


def test_hooks_are_commands_of_the_environment():
    config = yaml.safe_load(text_of(ROOT / ".pre-commit-config.yaml"))
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    assert {repo["repo"] for repo in config["repos"]} == {"local"} and len(hooks) >= 3
    for hook in hooks:
        assert hook["language"] == "system" and {"id", "name", "entry"} <= set(hook)
        program = hook["entry"].split()[0]
        assert program in (".venv/bin/ruff", ".venv/bin/python"), hook["entry"]
        script = next((word for word in hook["entry"].split() if word.endswith(".py")), None)
        assert script is None or (ROOT / script).exists(), hook["entry"]


@pytest.mark.parametrize("notebook", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_stored_as_the_hook_leaves_them(notebook):
    cells = nbformat.read(notebook, as_version=4).cells
    assert all(cell.id for cell in cells) and len({cell.id for cell in cells}) == len(cells)
    assert not [cell.id for cell in cells if cell.get("outputs") or cell.get("execution_count")]
