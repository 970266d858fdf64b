"""The `vr1` command: its exit codes, its one-line errors, and `grade`."""

import io
import json
import os
import subprocess
import sys
import time

import pytest

from vr1lib.workbench.cli import main

RIGHT = "<think>2 + 2</think><answer>4</answer>"


def row(**changes):
    return json.dumps({"id": "a", "completion": RIGHT, "answer": "4"} | changes, ensure_ascii=False)


def test_grade_gives_one_verdict_a_row_in_order(tmp_path, capsys):
    rows = [
        row(id="b"),
        "",
        row(id=3, answer="5", extra="ignored"),
        row(id="c", completion="4"),
        row(choices=["4", "5"]),
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(rows) + "\n")
    assert main(["grade", str(tmp_path / "in.jsonl")]) == 0
    verdicts = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [verdict["id"] for verdict in verdicts] == ["b", 3, "c", "a"]
    assert list(verdicts[0]) == ["id", "reward", "format_ok", "answer_ok", "extracted", "reason"]
    assert [verdict["reward"] for verdict in verdicts] == [1, 0, 0, 1]


def test_grade_writes_a_file_and_knows_the_other_reward(tmp_path):
    (tmp_path / "in.jsonl").write_text(row(answer="5"))
    arguments = ["grade", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out.jsonl")]
    assert main([*arguments, "--reward", "format_plus_result"]) == 0
    assert json.loads((tmp_path / "out.jsonl").read_text())["reward"] == 0.5


def test_grade_reads_stdin(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(row(id="ü").encode())))
    assert main(["grade", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["id"] == "ü"


def test_half_a_surrogate_pair_passes_through(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"id": "\\ud800", "completion": "<think>", "answer": "4"}')
    assert main(["grade", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out.jsonl")]) == 0
    assert json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8"))["id"] == "\ud800"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (json.dumps({"id": "a", "completion": "x"}), "line 2: field 'answer' is missing"),
        (row(completion=4), "line 2: field 'completion' = 4"),
        (row(choices="AB"), "line 2: field 'choices' = 'AB'"),
        ("[1]", "line 2: the row is not an object"),
        ("{", "line 2: not JSON"),
        ("[" * 100_000, "line 2: not JSON"),
        ("\xff", "not UTF-8"),
    ],
)
def test_wrong_row_is_one_line_with_file_and_line(tmp_path, capsys, line, said):
    path = tmp_path / "in.jsonl"
    path.write_bytes(row().encode() + b"\n" + line.encode("latin-1"))
    assert main(["grade", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(str(path)) and said in error and error.count("\n") == 1


def test_missing_input_and_unwritable_output_are_one_line(tmp_path, capsys):
    assert main(["grade", str(tmp_path / "none.jsonl")]) == 2
    (tmp_path / "in.jsonl").write_text(row())
    assert main(["grade", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "no" / "out.jsonl")]) == 2
    unread, unwritten = capsys.readouterr().err.splitlines()
    assert "none.jsonl: cannot be read" in unread and "no/out.jsonl: cannot be written" in unwritten


def test_plain_rows_are_graded_at_20000_a_second(tmp_path):
    count = 10_000
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(row(id=number, answer=str(number % 7)) for number in range(count)))
    best = 0.0
    for _ in range(3):
        started = time.process_time()
        assert main(["grade", str(path), "--out", os.devnull]) == 0
        best = max(best, count / (time.process_time() - started))
    assert best >= 20_000


@pytest.mark.parametrize(
    "arguments", [[], ["fly"], ["grade"], ["run"], ["run", "50_analysis", "-p", "seed"], ["--what"]]
)
def test_wrong_command_line_is_one_line_and_exit_2(capsys, arguments):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    error = capsys.readouterr().err
    assert left.value.code == 2 and error.count("\n") == 1 and "--help" in error


def test_python_dash_m_is_the_same_command(tmp_path):
    (tmp_path / "in.jsonl").write_text(row())
    command = [sys.executable, "-m", "vr1lib", "grade", str(tmp_path / "in.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and json.loads(done.stdout)["reward"] == 1
    done = subprocess.run([*command[:-1], "none.jsonl"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1


def test_reader_that_leaves_early_ends_grade_quietly(tmp_path):
    (tmp_path / "in.jsonl").write_text("\n".join(row() for _ in range(20_000)))
    command = f"{sys.executable} -m vr1lib grade {tmp_path}/in.jsonl | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.stdout.count("\n") == 1 and done.stderr == ""


def test_report_needs_run_folders(home, capsys):
    assert main(["report", "outputs/40_benchmark/none"]) == 2
    assert "no run folder" in capsys.readouterr().err


def test_replay_and_browse_reach_their_modules(home, capsys, monkeypatch):
    problem = {
        "id": "p",
        "images": [],
        "question": "2 + 2?",
        "answer": "4",
        "choices": None,
        "source": "t",
        "split": "t",
    }
    said = {"problem_id": "p", "sample": 0, "step": 0, "stage": 0, "text": RIGHT, "tokens": 9, "finish": "stop"}
    verdict = {"logprob": -1.0, "reward": 0.0, "format_ok": True, "answer_ok": False, "extracted": "4", "reason": ""}
    (home / "problems.jsonl").write_text(json.dumps(problem))
    (home / "completions.jsonl").write_text(json.dumps(said | verdict))
    arguments = ["--problems", "problems.jsonl", "--reward", "hard", "--out", "out.json"]
    assert main(["replay", "completions.jsonl", *arguments, "--json"]) == 0
    assert '"p"' in (home / "out.json").read_text()
    assert main(["replay", "nothing"]) == main(["browse", "nothing"]) == 2
    assert capsys.readouterr().err.count("no run folder") == 2
    (home / "outputs/40_benchmark/a").mkdir(parents=True)
    (home / "outputs/40_benchmark/a/manifest.json").write_text("{}")
    monkeypatch.setattr("vr1lib.analysis.browser.write_browser", lambda folders, out: out)
    assert main(["browse", "40_benchmark/a"]) == 0
    assert capsys.readouterr().out.strip() == str(home / "outputs/40_benchmark/a/browser.html")


def test_doctor_tells_what_fits(home, capsys):
    for stem, name, text in [
        ("20_cold_sft", "demo", "model: tiny\n"),
        ("40_benchmark", "wrong", "modle: tiny\n"),
    ]:
        (home / "params" / stem).mkdir(exist_ok=True)
        (home / "params" / stem / f"{name}.yaml").write_text(text)
    assert main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    rows = {row["file"].split("/")[-1]: row for row in findings["parameter_files"]}
    assert rows["demo.yaml"]["fits"] and rows["demo.yaml"]["needs_vram_gib"] == 0
    assert "modle" in rows["wrong.yaml"]["error"] and not rows["wrong.yaml"]["fits"]
    assert findings["torch"] and findings["disk_free_gib"] > 0
    assert main(["doctor"]) == 0
    page = capsys.readouterr().out
    assert "fits (CPU)" in page and "W&B login" in page


def test_doctor_tells_one_files_memory_by_part_and_what_would_fit(capsys):
    file = "params/30_ptst_grpo/full_3b_1gpu.yaml"
    assert main(["doctor", "-f", file]) == 0
    page = capsys.readouterr().out
    assert "KV cache" in page and "room for it: 80, 141 GB" in page and "on 24 GB: " in page
    assert main(["doctor", "-f", file, "-p", "method", "qlora", "--json"]) == 0
    assert 24 in json.loads(capsys.readouterr().out)["cards"]
