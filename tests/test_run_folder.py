"""Folders and manifests: content hashes, locks, and who made what."""

import subprocess
import sys

import pytest

from vr1lib.records import RequestError
from vr1lib.workbench.params import load_parameters
from vr1lib.workbench.run_folder import claim_folder, find_producer, sha256

STEM = "50_analysis"


def test_folder_hash_depends_on_names_and_contents(tmp_path):
    (tmp_path / "a").write_text("1")
    one = sha256(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    other = sha256(tmp_path)
    (tmp_path / "b").write_text("2")
    assert len({one, other, sha256(tmp_path)}) == 3


def test_folder_in_use_by_another_process_is_refused(home):
    code = (
        "import sys; from vr1lib.workbench.params import load_parameters\n"
        "from vr1lib.workbench.run_folder import claim_folder\n"
        f"held = claim_folder({STEM!r}, load_parameters({STEM!r})); print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    with pytest.raises(RequestError, match="another process is running there"):
        claim_folder(STEM, load_parameters(STEM))
    other.communicate("")
    claim_folder(STEM, load_parameters(STEM))[1].close()


@pytest.fixture
def made(begin):
    """A finished 10_data_building run with rl.jsonl and model/, and nothing of it known by name."""
    run = begin("10_data_building", run="demo")
    (run.folder / "rl.jsonl").write_text("problems")
    (run.folder / "model").mkdir()
    (run.folder / "model" / "weights").write_text("weights")
    run.add_output(run.folder / "rl.jsonl", "dataset", "rl")
    run.add_output(run.folder / "model", "model", "model")
    run.finish()
    return run.folder


def producer(path):
    found = find_producer(path, sha256(path))
    return found and (found.artifact, found.path)


def test_output_is_found_where_its_run_made_it(made):
    assert producer(made / "rl.jsonl") == ("10_data_building-rl", made / "rl.jsonl")
    assert producer(made / "model" / "weights") == ("10_data_building-model", made / "model")


def test_output_is_found_after_its_run_was_renamed(made, begin):
    better = made.rename(made.with_name("better"))
    assert producer(better / "rl.jsonl") == ("10_data_building-rl", better / "rl.jsonl")
    assert producer(better / "model" / "weights") == ("10_data_building-model", better / "model")


def test_output_is_found_after_its_run_was_moved_aside_by_another(made, begin):
    begin("10_data_building", run="demo")
    aside = made.with_name("demo~1")
    assert producer(aside / "rl.jsonl") == ("10_data_building-rl", aside / "rl.jsonl")


def test_copy_of_an_output_is_that_output(made, home):
    (home / "copy.jsonl").write_text("problems")
    assert producer(home / "copy.jsonl") == ("10_data_building-rl", home / "copy.jsonl")


def test_output_changed_by_hand_is_nobodys(made):
    (made / "rl.jsonl").write_text("other problems")
    (made / "model" / "weights").write_text("other weights")
    assert producer(made / "rl.jsonl") is None
    assert producer(made / "model" / "weights") is None


def test_empty_files_are_not_taken_for_each_other(made, begin, home):
    run = begin("10_data_building", run="other")
    (run.folder / "rejects.jsonl").touch()
    run.add_output(run.folder / "rejects.jsonl", "dataset", "rejects")
    (home / "empty.jsonl").touch()
    assert producer(home / "empty.jsonl") is None
