"""docs/parameters.md from the parameter models, so that the page cannot say anything else than the code.

    python -m vr1lib.workbench.parameters_doc > docs/parameters.md

A notebook's own parameters stand under its name; what all notebooks or both trainings take stands once, above.
"""

import re
import sys

import yaml

from vr1lib.workbench.params import PARAMETERS, Parameters, TrainingParameters, in_words

HEAD = """# Every parameter of the six notebooks

Made from the models in `vr1lib/workbench/params.py`; make it again after a change there:

    python -m vr1lib.workbench.parameters_doc > docs/parameters.md

A parameter is given in a file (`vr1 run STEM -f FILE`), on the command line (`-p KEY VALUE`, which wins), in a
notebook's first code cell, or by papermill. An unknown name, a wrong type or a value out of bounds is refused in one
line before anything runs. The files in `params/STEM/` are flat and complete: the nearest of them is the best place to
start. *ours* and *our choice* mean that the paper is silent.
"""
SHARED = {
    "Every notebook": (Parameters, None),
    "Both training notebooks": (TrainingParameters, "`20_cold_sft` and `30_ptst_grpo` take these beside their own."),
}


def page() -> str:
    """The page as Markdown."""
    parts = [HEAD]
    for title, (model, note) in SHARED.items():
        parts.append(section(title, model, note))
    for stem, model in PARAMETERS.items():
        parts.append(section(f"`{stem}`", model, sentence(model)))
    return "\n".join(parts)


def sentence(model: type[Parameters]) -> str:
    """What the notebook is for: its model's docstring without the name in front."""
    text = " ".join((model.__doc__ or "").split())
    about = text.partition(": ")[2]
    return about[0].upper() + about[1:]


def section(title: str, model: type[Parameters], note: str | None) -> str:
    """A heading, a sentence, and a table of the fields that no parent of the model has."""
    inherited = {name for parent in model.__mro__[1:] for name in getattr(parent, "model_fields", {})}
    lines = [f"## {title}", ""]
    if note:
        lines += [note, ""]
    lines += ["| parameter | default | what it may be | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        if name not in inherited:
            allowed = re.sub(r"of the form (\S+)", r"of the form `\1`", in_words(field.annotation, field.metadata))
            cells = (f"`{name}`", f"`{as_yaml(field.default)}`", allowed, field.description)
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join([*lines, ""])


def as_yaml(value: object) -> str:
    """A default as it is written in a parameter file."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


if __name__ == "__main__":
    sys.stdout.write(page())
