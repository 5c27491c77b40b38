"""The site's page of the Python API, made from the docstrings of `comp.__all__`; see docs/reference.py."""

import inspect
import re
import textwrap
from collections.abc import Callable
from functools import cache
from typing import Any

ADDRESS = "reference/python.md"
_WIDTH = 88  # of a call
_HEAD = """# Python API

`import comp` has these names; they load PyTorch when the first one is used. Everything that a user can mend is a
`comp.runtime.errors.UserError`, with one message that says what, where and how to fix it. Work that takes time shows a
bar in a terminal or notebook; `progress=comp.quiet` shows none."""


@cache
def items() -> dict[str, Any]:
    """Return what users call -> its object: functions, classes, and the methods that these do not inherit."""
    import comp

    public: dict[str, Any] = {}
    for name in comp.__all__:
        if not name.startswith("_"):
            item = public[f"comp.{name}"] = getattr(comp, name)
            own = vars(item) if inspect.isclass(item) else {}
            public |= {
                f"comp.{name}.{method}": value
                for method, value in own.items()
                if inspect.isfunction(value) and not method.startswith("_")
            }
    return public


def results() -> tuple[type, ...]:
    """Return the classes that functions of the API return."""
    from comp.data.quality import DataFinding
    from comp.ensembles.cross_validate import CrossValidation
    from comp.ensembles.packaged import PackagePrediction
    from comp.results.predictions import Predictions
    from comp.submission.validate import SubmissionReport
    from comp.tuning.results import StudyReport
    from comp.workflows.init import Draft

    return Predictions, CrossValidation, StudyReport, Draft, DataFinding, SubmissionReport, PackagePrediction


def sections(item: Any) -> dict[str, str]:
    """Return the parts of a docstring: its text, under an empty name, and what follows `Args:`, `Raises:` and so on."""
    parts = re.split(r"^(Args|Attributes|Returns|Raises):\n", inspect.getdoc(item) or "", flags=re.MULTILINE)
    return {"": parts[0].strip(), **dict(zip(parts[1::2], map(textwrap.dedent, parts[2::2]), strict=True))}


def entries(block: str) -> dict[str, str]:
    """Return the name -> text of the entries of `Args:`, `Attributes:` or `Raises:`."""
    found = re.findall(r"^(\w+): (.+(?:\n +.+)*)", block, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def page(escaped: Callable[[str], str]) -> str:
    """Return the page as Markdown; `escaped` hides signs of Markdown in a text."""
    parts = [_HEAD]
    for path, item in items().items():
        parts += [f"## {path} {{ #{path} }}", *_described(path, item, escaped)]
    parts.append("## What they return")
    for item in results():
        parts += [f"### {item.__name__} {{ #{item.__name__.lower()} }}", *_described("", item, escaped)]
        methods = {name: value for name, value in vars(item).items() if inspect.isfunction(value) and name[0] != "_"}
        rows = [f"| `{name}()` | {escaped(sections(value)[''].splitlines()[0])} |" for name, value in methods.items()]
        parts += ["\n".join(["| method | meaning |", "|---|---|", *rows])] if rows else []
    return "\n\n".join(parts)


def _described(path: str, item: Any, escaped: Callable[[str], str]) -> list[str]:
    text, signature = sections(item), inspect.signature(item)
    types = {name: _type(parameter.annotation) for name, parameter in signature.parameters.items()}
    parts = [f"```python\n{_call(path, signature)}\n```"] if path else []
    parts += map(escaped, re.split(r"\n\n", text[""]))
    for name in ("Args", "Attributes"):
        cells = [
            [f"`{key}`", escaped(types.get(key, "")), escaped(meaning)]
            for key, meaning in entries(text.get(name, "")).items()
        ]
        rows = [f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in cells]
        if rows:
            heading = "argument" if name == "Args" else "attribute"
            parts.append("\n".join([f"| {heading} | type | meaning |", "|---|---|---|", *rows]))
    if "Returns" in text:
        parts.append(f"Returns: {escaped(' '.join(text['Returns'].split()))}")
    parts += [f"Raises `{error}`: {escaped(why)}" for error, why in entries(text.get("Raises", "")).items()]
    return parts


def _call(path: str, signature: inspect.Signature) -> str:
    """Return a call with its defaults, without types: `comp.train(config, *, name='run')`."""
    shown = [one.replace(annotation=one.empty) for one in signature.parameters.values() if one.name != "self"]
    words = re.sub(r"<function (\w+) at \w+>", r"comp.\1", str(inspect.Signature(shown))[1:-1])
    returned = signature.return_annotation
    if len(path) + len(words) > _WIDTH:
        words = f"\n{textwrap.indent(textwrap.fill(words, _WIDTH), '    ')}\n"
    is_shown = returned not in (None, inspect.Signature.empty)  # None: of a class
    return f"{path}({words})" + (f" -> {_type(returned, ' | ')}" if is_shown else "")


def _type(annotation: Any, separator: str = " or ") -> str:
    """Return a type as people say it: `Config or Path or str`."""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    text = re.sub(r"(?:\w+\.)+(?=\w)", "", text)
    return re.sub(r"ndarray\[tuple\[Any, ...\], dtype\[(\w+)\]\]", r"\1 array", text).replace(" | ", separator)
