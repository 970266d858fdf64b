"""Parameters: right values arrive, wrong ones are one line, and notebooks, models and YAML files agree."""

import ast
from pathlib import Path

import nbformat
import pytest
import yaml

from vr1lib.records import RequestError
from vr1lib.workbench.params import PARAMETERS, SECRET_NAME, from_notebook, load_parameters, project_root

ROOT = Path(__file__).parent.parent
STEM = "20_cold_sft"


def complaint(stem=STEM, files=(), overrides=()):
    with pytest.raises(RequestError) as caught:
        load_parameters(stem, files, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_later_file_wins_and_override_wins_over_files(home):
    first = write(home / "a.yaml", "seed: 1\nrun: first\nwandb_project: mine\n")
    second = write(home / "b.yaml", "seed: 2\nrun: second\n")
    params = load_parameters(STEM, [first, second], [("run", "third")])
    assert (params.seed, params.run, params.wandb_project) == (2, "third", "mine")


def test_number_written_as_yaml_text_is_the_number(home):
    path = write(home / "a.yaml", "learning_rate: 1e-6\n")
    assert yaml.safe_load(path.read_text())["learning_rate"] == "1e-6", "YAML 1.1 has become 1.2: this rule may go"
    assert load_parameters(STEM, [path]).learning_rate == 1e-6


def test_whole_number_may_be_written_with_an_exponent_if_it_is_whole(home):
    assert load_parameters(STEM, [], [("seed", "1e3")]).seed == 1000
    assert "seed = '1e-3' is not allowed" in complaint(overrides=[("seed", "1e-3")])


def test_numbers_inside_lists_are_read_too(home):
    params = load_parameters("30_ptst_grpo", [], [("stages", "[[64, 16, '1e2']]")])
    assert params.stages == [[64, 16, 100]]


def test_unknown_key_names_file_key_and_nearest_known_key(home):
    path = write(home / "a.yaml", "learning_rat: 1.0e-6\n")
    message = complaint(files=[path])
    assert str(path) in message and "'learning_rat'" in message and "'learning_rate'" in message


@pytest.mark.parametrize(
    ("line", "allowed"),
    [
        ("learning_rate: -1", "learning_rate is a number > 0 and ≤ 1"),
        ("learning_rate: .nan", "learning_rate is a number > 0 and ≤ 1"),
        ("learning_rate: fast", "learning_rate is a number > 0 and ≤ 1"),
        ("seed: true", "seed is a whole number ≥ 0 and < 4294967296"),
        ("seed: 1.5", "seed is a whole number ≥ 0 and < 4294967296"),
        ("seed: [1]", "seed is a whole number ≥ 0 and < 4294967296"),
        ("wandb_mode: on", "wandb_mode is one of offline, online, disabled"),
        ("wandb_group: 3", "wandb_group is a text or null"),
        ("run: a/b", "run is a text of the form"),
        ("run: ..", "run is a text of the form"),
    ],
)
def test_wrong_value_names_file_key_value_and_what_is_allowed(home, line, allowed):
    path = write(home / "a.yaml", line + "\n")
    message = complaint(files=[path])
    key = line.split(":")[0]
    assert message.startswith(f"{path}: {key} = ") and allowed in message


def test_wrong_value_inside_a_list_names_its_place(home):
    message = complaint("30_ptst_grpo", overrides=[("stages", "[[64, 16, 30], [128, 0, 20]]")])
    assert message.startswith("-p: stages[1][1] = 0 is not allowed")


def test_infinity_is_no_number_for_us(home):
    assert "kl_coefficient is a number ≥ 0" in complaint("30_ptst_grpo", overrides=[("kl_coefficient", ".inf")])


def test_value_from_an_earlier_file_is_blamed_on_that_file(home):
    wrong, right = write(home / "wrong.yaml", "seed: x\n"), write(home / "right.yaml", "run: fine\n")
    assert complaint(files=[wrong, right]).startswith(f"{wrong}: seed")


def test_override_stays_text_where_text_is_meant(home):
    assert load_parameters("40_benchmark", [], [("label", "7"), ("run", "2024")]).label == "7"
    assert load_parameters(STEM, [], [("wandb_group", "null")]).wandb_group is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("run: a\nseed: [1\n", "line 3: not valid YAML"),
        ("run: a\nseed: 1\nseed: 2\n", "line 3: not valid YAML ('seed' is given twice)"),
        ("- a\n- b\n", "holds no `key: value` lines"),
        ("just text\n", "holds no `key: value` lines"),
        ("seed: 2024-99-99\n", "not valid YAML"),
    ],
)
def test_broken_yaml_is_one_line_with_its_place(home, text, said):
    path = write(home / "a.yaml", text)
    message = complaint(files=[path])
    assert message.startswith(str(path)) and said in message


def test_file_that_is_not_text_or_not_there_is_one_line(home):
    (home / "a.yaml").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in complaint(files=[home / "a.yaml"])
    (home / "params" / STEM).mkdir()
    write(home / "params" / STEM / "demo.yaml", "")
    assert f"params/{STEM}: demo.yaml" in complaint(files=["none.yaml"])


def test_parameter_file_is_found_from_any_folder(home, monkeypatch):
    (home / "params" / STEM).mkdir()
    write(home / "params" / STEM / "demo.yaml", "seed: 3\n")
    (home / "elsewhere").mkdir()
    monkeypatch.chdir(home / "elsewhere")
    assert load_parameters(STEM, [f"params/{STEM}/demo.yaml"]).seed == 3


def test_unknown_stem_names_the_notebooks():
    assert all(stem in complaint("30") for stem in PARAMETERS)


def test_secret_is_sent_to_the_environment(home):
    assert "environment" in complaint(overrides=[("teacher_api_key", "x")])
    fields = [name for model in PARAMETERS.values() for name in model.model_fields]
    assert not [name for name in fields if SECRET_NAME.search(name)]


def test_resolved_parameters_written_as_yaml_read_back_the_same(home):
    params = load_parameters("30_ptst_grpo", [], [("learning_rate", "1e-6")])
    assert load_parameters("30_ptst_grpo", [write(home / "p.yaml", params.to_yaml())]) == params


def test_notebook_takes_its_own_names_and_moves_to_the_root(home, monkeypatch):
    (home / "notebooks" / "deeper").mkdir()
    monkeypatch.chdir(home / "notebooks" / "deeper")
    assert from_notebook(STEM, {"seed": 5, "run": "mine"}).seed == 5
    assert Path.cwd() == home


def test_name_that_papermill_injects_but_the_notebook_does_not_know_is_refused(home):
    cells = ["", "seed = 0\nrun = 'a'", "# Parameters\nlerning_rate = 1e-6\n"]
    with pytest.raises(RequestError, match="'lerning_rate'.*'learning_rate'"):
        from_notebook(STEM, {"In": cells, "seed": 0, "run": "a", "lerning_rate": 1e-6})


def test_names_of_other_cells_are_left_alone(home):
    cells = ["", "seed = 1 / 1\nrun = 'a'", "import os\nrows = [1]", "%matplotlib inline", "rows = [2]"]
    assert from_notebook(STEM, {"In": cells, "seed": 4, "run": "a", "rows": [2]}).seed == 4


def test_notebook_can_be_run_again_in_the_same_kernel(home):
    class EarlierRun:
        name = "mine"

    assert from_notebook(STEM, {"In": [], "run": EarlierRun()}).run == "mine"


def test_root_is_found_above_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.delenv("VR1_HOME", raising=False)
    for folder in ("notebooks", "params", "outputs/deep"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "outputs" / "deep")
    assert project_root() == tmp_path.resolve()
    monkeypatch.setenv("VR1_HOME", str(tmp_path / "outputs"))
    with pytest.raises(RequestError, match="VR1_HOME"):
        project_root()


# What others write by hand: the notebooks and their parameter files.


@pytest.mark.parametrize("stem", PARAMETERS)
def test_every_field_says_what_it_means(stem):
    for name, field in PARAMETERS[stem].model_fields.items():
        assert field.description and field.description.endswith("."), f"{stem}: {name} has no description"


@pytest.mark.parametrize("stem", PARAMETERS)
def test_parameters_cell_and_model_agree(stem):
    notebook = nbformat.read(ROOT / "notebooks" / f"{stem}.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(cells) == 1, f"{stem}: {len(cells)} cells tagged parameters"
    tree = ast.parse(cells[0].source)
    names = [statement.targets[0].id for statement in tree.body]
    assert sorted(names) == sorted(PARAMETERS[stem].model_fields), f"{stem}: names differ from the model's"
    namespace = {}
    exec(compile(tree, stem, "exec"), namespace)
    given = {name: namespace[name] for name in names}
    assert PARAMETERS[stem](**given) == PARAMETERS[stem](), f"{stem}: defaults differ"
    assert given == PARAMETERS[stem]().model_dump(), f"{stem}: defaults are not valid as they stand"


@pytest.mark.parametrize("stem", PARAMETERS)
def test_every_parameter_file_is_flat_complete_and_valid(stem):
    files = sorted((ROOT / "params" / stem).glob("*.yaml"))
    assert {"demo.yaml", "tiny.yaml", "real_sample.yaml"} <= {file.name for file in files}
    for file in files:
        load_parameters(stem, [file])
        keys = yaml.safe_load(file.read_text(encoding="utf-8"))
        assert sorted(keys) == sorted(PARAMETERS[stem].model_fields), f"{file}: keys differ from the model's"


def test_every_parameter_folder_belongs_to_a_notebook():
    folders = {path.name for path in (ROOT / "params").iterdir() if path.is_dir()}
    assert folders - {"sweeps"} == set(PARAMETERS)
    assert {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} == set(PARAMETERS)
