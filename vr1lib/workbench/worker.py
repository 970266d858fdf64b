"""One process of many: `python -m vr1lib.workbench.worker RUN_FOLDER`, started by torchrun's agent on every GPU.

It reads the run's own params.yaml, loads what the notebook loaded and runs its job. Process 0 writes the run folder's
record, which the notebook follows, and its words go to progress.log; those of the others to logs/. A worker whose agent
is gone ends: nobody would stop it, and it would go on writing.
"""

import os
import sys
import threading
import time
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import record

from vr1lib.data.sources import Reject
from vr1lib.records import read_jsonl
from vr1lib.workbench import jobs
from vr1lib.workbench.params import PtstGrpoParameters, load_parameters, project_root
from vr1lib.workbench.record import Record
from vr1lib.workbench.run_folder import read_manifest

WATCH_SECONDS = 1.0


@record
def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    threading.Thread(target=end_with_agent, args=(os.getppid(),), daemon=True).start()
    if os.environ["RANK"] == "0":
        speak_into(folder / "progress.log")
    stem = folder.parent.name
    params = load_parameters(stem, [folder / "params.yaml"])
    resumed_from = read_manifest(folder)["resumed_from"]
    if isinstance(params, PtstGrpoParameters):
        problems = jobs.load_problems(params, folder).problems
        left_out = {reject.id for reject in read_jsonl(folder / "rejects.jsonl", Reject)}  # as the notebook found
        data = [[each for each in problems if each.id not in left_out], jobs.load_held_out(params)]
    else:
        data = [jobs.load_rows(params, folder)[0]]
    jobs.JOBS[stem](
        params,
        folder,
        jobs.load_policy(params, folder),
        *data,
        record=Record(folder),
        resume_from=project_root() / resumed_from if resumed_from else None,
    )


def speak_into(path: Path) -> None:
    """Everything this process says, on the level of file descriptors, goes to the end of `path`.

    What it fails of is told by the agent, from the error file that torchrun's `record` writes.
    """
    sys.excepthook = lambda *error: None
    with path.open("a", encoding="utf-8") as file:
        sys.stdout.flush()
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)


def end_with_agent(agent: int) -> None:
    while os.getppid() == agent:
        time.sleep(WATCH_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main()
