"""The `vr1` command.

Exit codes: 0 done, 1 the work failed, 2 the request was wrong (one line on stderr, no traceback), 130 interrupted.
Each command imports what it needs when it runs, so that `vr1 --help` and `vr1 grade` start without torch.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn, TextIO

import vr1lib
from vr1lib.records import RequestError


class OneLineParser(argparse.ArgumentParser):
    """argparse without its page of usage: a wrong request is one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    try:
        return options.command(options)
    except RequestError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `vr1 grade … | head`: the reader has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; `vr1 run` also takes KEY=VALUE anywhere, as W&B's sweep agent writes parameters.

    A value is read as YAML, which reads Python's lists and dictionaries too; W&B writes null as None.
    """
    top = parser()
    options, rest = top.parse_known_args(arguments)
    if rest and options.command is not run_notebook or not all(re.match(r"[A-Za-z_]\w*=", text) for text in rest):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    for key, _, value in (text.partition("=") for text in rest):
        options.overrides.append((key, "null" if value == "None" else value))
    return options


def parser() -> argparse.ArgumentParser:
    top = OneLineParser(prog="vr1", description="Vision-R1 as a notebook workbench.")
    top.add_argument("--version", action="version", version=f"vr1 {vr1lib.__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    doctor = commands.add_parser("doctor", help="what this machine can run, and which parameter files fit it")
    doctor.add_argument("-f", dest="file", metavar="FILE", help="one parameter file's memory, part by part")
    doctor.add_argument(
        "-p", dest="overrides", action="append", default=[], nargs=2, metavar=("KEY", "VALUE"), help="wins over FILE"
    )
    doctor.add_argument("--json", action="store_true", help="print JSON for a program")
    doctor.set_defaults(command=run_doctor)

    run = commands.add_parser("run", help="execute a notebook with checked parameters into outputs/STEM/RUN/")
    run.add_argument("stem", metavar="STEM", help="the notebook's name, such as 30_ptst_grpo")
    run.add_argument(
        "-f", dest="files", action="append", default=[], metavar="FILE", help="parameter file; later files win"
    )
    run.add_argument(
        "-p", dest="overrides", action="append", default=[], nargs=2, metavar=("KEY", "VALUE"), help="wins over files"
    )
    run.epilog = "KEY=VALUE arguments are the same as -p KEY VALUE."
    run.add_argument("--name", metavar="RUN", help="the run's name (the parameter `run`)")
    run.add_argument("--resume", action="store_true", help="go on with the run of that name from its last checkpoint")
    run.set_defaults(command=run_notebook)

    sweep = commands.add_parser("sweep", help="a run for each point of a W&B sweep configuration (grid, random)")
    sweep.add_argument("file", metavar="FILE", help="params/sweeps/NAME.yaml; `wandb sweep FILE` takes it too")
    sweep.add_argument(
        "--jobs", type=positive, metavar="N", help="runs at once (default: 1; ray: what it has room for)"
    )
    sweep.add_argument("--resume", action="store_true", help="run only what has not finished")
    sweep.add_argument(
        "--executor", choices=("local", "ray"), default="local", help="where the runs go (default: local)"
    )
    sweep.add_argument("--address", metavar="A", help="the Ray cluster: HOST:PORT, auto (default), or local: a new one")
    sweep.set_defaults(command=run_sweep)

    join = commands.add_parser("join", help="lend this machine to a run that another one started (nodes > 1)")
    join.add_argument("run", metavar="RUN", help="its run folder, on a file system that both see")
    join.set_defaults(command=join_run)

    grade = commands.add_parser("grade", help="grade completions by the one rule of filter, reward and benchmark")
    grade.add_argument("input", metavar="IN.jsonl", help="rows {id, completion, answer, choices?}; - for stdin")
    grade.add_argument("--out", metavar="OUT.jsonl", help="where the verdicts go, in order; stdout without it")
    grade.add_argument("--reward", choices=("hard", "format_plus_result"), default="hard")
    grade.set_defaults(command=run_grade)

    merge = commands.add_parser("merge", help="a run's model as a plain Hugging Face folder, its adapter merged in")
    merge.add_argument("run", metavar="RUN", help="run folder, checkpoint or model folder")
    merge.add_argument("out", metavar="OUT", help="the new folder")
    merge.set_defaults(command=merge_model)

    ask = commands.add_parser("ask", help="one answer about pictures, thinking and answer apart")
    ask.add_argument("--model", required=True, metavar="M", help="model folder, run folder or hub name")
    ask.add_argument(
        "--image", dest="images", action="append", default=[], metavar="FILE", help="once for each picture"
    )
    ask.add_argument("--question", required=True, metavar="TEXT")
    ask.add_argument("--max-tokens", type=int, default=4096, metavar="N", help="longest answer (default: 4096)")
    ask.add_argument("--temperature", type=float, default=0.0, metavar="T", help="default: 0, greedy")
    ask.add_argument("--json", action="store_true", help="print JSON for a program")
    ask.set_defaults(command=ask_model)

    score = commands.add_parser("score", help="predictions of a benchmark, scored offline by its own published rule")
    score.add_argument("benchmark", metavar="BENCHMARK", help="mathvista, mathverse, mmmath, dynamath, mmstar, …")
    score.add_argument("predictions", metavar="PREDICTIONS.jsonl", help="rows {id, response, extraction?, variant?}")
    score.add_argument("--data", required=True, metavar="PATH", help="the benchmark's folder or file, as published")
    score.add_argument("--out", metavar="FILE", help="where the scores go as JSON")
    score.add_argument("--protocol", choices=("official", "strict", "authors"), default="official")
    score.add_argument("--strict", action="store_true", help="refuse predictions that are missing, twice or unknown")
    score.add_argument("--json", action="store_true", help="print JSON for a program")
    score.set_defaults(command=score_predictions)

    stats = commands.add_parser("stats", help="words of doubt (Table 2) and lengths of the texts in a file of rows")
    stats.add_argument("file", metavar="FILE", help="cold rows, completions, or a released data set's file or folder")
    stats.add_argument("--json", action="store_true", help="print JSON for a program")
    stats.set_defaults(command=count_stats)

    audit = commands.add_parser("audit", help="golds, leaks, and problems that stand in two files")
    audit.add_argument("file", metavar="FILE", help="problems or cold rows")
    audit.add_argument("--against", action="append", default=[], metavar="FILE", help="once for each other file")
    audit.add_argument("--json", action="store_true", help="print JSON for a program")
    audit.set_defaults(command=audit_rows)

    export = commands.add_parser("export", help="training data in the peers' formats")
    export.add_argument("file", metavar="FILE", help="cold rows or problems")
    export.add_argument("--to", required=True, choices=("llama-factory", "easyr1", "verl", "hf"))
    export.add_argument("out", metavar="OUT", help="the new folder")
    export.set_defaults(command=export_rows)

    replay = commands.add_parser("replay", help="saved completions graded again under another reward or protocol")
    replay.add_argument("run", metavar="RUN", help="run folder, STEM/RUN below outputs/, or a file of completions")
    how = replay.add_mutually_exclusive_group()
    how.add_argument("--reward", choices=("hard", "format_plus_result"), help="default: the run's own reward")
    how.add_argument("--protocol", choices=("strict", "official", "authors"), help="a benchmark's reading instead")
    replay.add_argument("--problems", metavar="FILE", help="their problems, where the run does not lead to them")
    replay.add_argument("--out", metavar="FILE", help="the JSON with every changed completion")
    replay.add_argument("--json", action="store_true", help="print JSON for a program")
    replay.set_defaults(command=replay_run)

    browse = commands.add_parser("browse", help="one page of completions with pictures, to filter and to sort")
    browse.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or STEM/RUN below outputs/")
    browse.add_argument("--out", metavar="FILE", help="default: browser.html in the first run folder")
    browse.set_defaults(command=browse_runs)

    dashboard = commands.add_parser("dashboard", help="a workspace and a report for these runs in W&B")
    dashboard.add_argument("project", metavar="PROJECT", help="the W&B project (the parameter wandb_project)")
    dashboard.add_argument("--entity", metavar="E", help="user or team (default: your own)")
    dashboard.add_argument("--dry-run", action="store_true", help="print what it would make, without network or login")
    dashboard.add_argument("--json", action="store_true", help="print JSON for a program")
    dashboard.set_defaults(command=write_dashboard)

    sync = commands.add_parser("sync", help="upload what runs recorded offline to W&B")
    sync.add_argument("runs", nargs="*", metavar="RUN", help="run folders, or STEM/RUN below outputs/ (default: all)")
    sync.set_defaults(command=sync_runs)

    report = commands.add_parser("report", help="one self-contained HTML page over run folders")
    report.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or STEM/RUN below outputs/")
    report.add_argument("--out", metavar="FILE", help="default: report.html in the first run folder")
    report.set_defaults(command=run_report)
    return top


def run_doctor(options: argparse.Namespace) -> int:
    from vr1lib.workbench import doctor

    findings = doctor.examine_file(options.file, options.overrides) if options.file else doctor.examine()
    in_words = doctor.file_in_words if options.file else doctor.in_words
    print(json.dumps(findings, indent=2, ensure_ascii=False) if options.json else in_words(findings))
    return 0


def run_notebook(options: argparse.Namespace) -> int:
    from vr1lib.workbench.launch import launch

    return launch(options.stem, options.files, options.overrides, options.name, options.resume)


def run_sweep(options: argparse.Namespace) -> int:
    from vr1lib.workbench.sweep import sweep_command

    return sweep_command(options.file, options.jobs, options.resume, options.executor, options.address)


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: give a whole number of at least 1")
    return number


def join_run(options: argparse.Namespace) -> int:
    from vr1lib.workbench.agent import join

    join(find_run(options.run))
    return 0


def run_grade(options: argparse.Namespace) -> int:
    from vr1lib.reward import grade_row

    with open_input(options.input) as source, open_output(options.out) as target:
        for where, row in json_rows(source, options.input):
            try:
                verdict = grade_row(row, options.reward)
            except RequestError as error:
                raise RequestError(f"{where}: {error}") from None
            target.write(json.dumps(verdict, ensure_ascii=False) + "\n")
    return 0


def run_report(options: argparse.Namespace) -> int:
    folders = [find_run(run) for run in options.runs]
    from vr1lib.analysis.report import write_run_report

    print(write_run_report(folders, Path(options.out) if options.out else folders[0] / "report.html"))
    return 0


def replay_run(options: argparse.Namespace) -> int:
    from vr1lib.analysis.replay import replay_command

    return replay_command(
        Path(options.run) if Path(options.run).is_file() else find_run(options.run),
        reward=options.reward,
        protocol=options.protocol,
        problems=options.problems,
        out=options.out,
        as_json=options.json,
    )


def browse_runs(options: argparse.Namespace) -> int:
    folders = [find_run(run) for run in options.runs]
    from vr1lib.analysis.browser import write_browser

    print(write_browser(folders, Path(options.out) if options.out else folders[0] / "browser.html"))
    return 0


def write_dashboard(options: argparse.Namespace) -> int:
    from vr1lib.workbench.dashboard import dashboard_command

    return dashboard_command(options.project, options.entity, options.dry_run, options.json)


def sync_runs(options: argparse.Namespace) -> int:
    folders = [find_run(run) for run in options.runs]
    from vr1lib.workbench.sync import sync_command

    return sync_command(folders)


def merge_model(options: argparse.Namespace) -> int:
    from vr1lib.workbench.ask import merge_command

    merge_command(options.run, options.out)
    return 0


def ask_model(options: argparse.Namespace) -> int:
    from vr1lib.workbench.ask import ask_command

    return ask_command(
        options.model,
        options.images,
        options.question,
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        as_json=options.json,
    )


def score_predictions(options: argparse.Namespace) -> int:
    from vr1lib.analysis.statistics import accuracy_interval
    from vr1lib.benchmarks.scoring import score_command

    return score_command(
        options.benchmark,
        options.predictions,
        options.data,
        options.out,
        options.strict,
        options.json,
        protocol=options.protocol,
        interval=accuracy_interval,
    )


def count_stats(options: argparse.Namespace) -> int:
    from vr1lib.analysis.tables import paper_rows
    from vr1lib.data.audits import stats_command

    return stats_command(options.file, options.json, paper_rows("paper_table2"))


def audit_rows(options: argparse.Namespace) -> int:
    from vr1lib.data.audits import audit_command

    return audit_command(options.file, options.against, options.json)


def export_rows(options: argparse.Namespace) -> int:
    from vr1lib.data.exports import export_command

    return export_command(options.file, options.to, options.out)


def find_run(run: str) -> Path:
    """The run folder meant by a path, or by STEM/RUN below outputs/."""
    from vr1lib.workbench.params import project_root

    for folder in (Path(run), project_root() / run, project_root() / "outputs" / run):
        if (folder / "manifest.json").exists():
            return folder.resolve()
    raise RequestError(f"{run}: no run folder (no manifest.json); give outputs/STEM/RUN")


def json_rows(source: TextIO, name: str) -> Iterator[tuple[str, Any]]:
    """("file, line n", row) for each line that is not blank. Raises RequestError for what is not JSON or not UTF-8."""
    number = 0
    try:
        for number, line in enumerate(source, start=1):
            if line.strip():
                yield f"{name}, line {number}", json.loads(line)
    except UnicodeDecodeError:
        raise RequestError(f"{name}, after line {number}: not UTF-8 text; convert the file") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise RequestError(f"{name}, line {number}: not JSON ({error}); give one object a line") from None


def open_input(name: str) -> Any:
    if name == "-":
        sys.stdin.reconfigure(encoding="utf-8")
        return nullcontext(sys.stdin)
    try:
        return open(name, encoding="utf-8")
    except OSError as error:
        raise RequestError(f"{name}: cannot be read ({error.strerror}); give the path of a JSONL file") from None


def open_output(name: str | None) -> Any:
    """A file or stdout as UTF-8; half a surrogate pair, which UTF-8 cannot hold, stays the JSON escape it was."""
    if name is None:
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
        return nullcontext(sys.stdout)
    try:
        return open(name, "w", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise RequestError(
            f"--out {name}: cannot be written ({error.strerror}); give a path in a folder that exists"
        ) from None
