"""The site's reference pages, made from the code when it is built; a hook of mkdocs, see mkdocs.yml.

Config keys come from `comp.config.reference`, commands from typer, the Python API from `python_api`, rows from the
dicts. A row's description is its line `name: text` in the docstring below the dict, or else the docstring of its
function. Pages from elsewhere in the repository join the site, links between files become links between pages, and
keys and commands in code font get links.
"""

import ast
import importlib
import inspect
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

from comp.config import reference
from docs import python_api

REPOSITORY = Path(__file__).parents[1]
# A page of the repository that lies outside docs/ -> its address in the site.
ELSEWHERE = {"CHANGELOG.md": "CHANGELOG.md", "benchmarks/README.md": "benchmarks.md"}

_OTHER = "Keys outside the sections. A file may also have `extends: base.yaml`, and is then merged into that file."

Column = Callable[[str, Any], str]  # a row's name and value -> a cell


@dataclass(frozen=True, eq=False)
class Registry:
    """A dict of named rows.

    Attributes:
        title: heading of its table.
        path: `module.NAME` of the dict.
        chosen_by: the config key or command that names a row.
        function: attribute of a row that holds its function, if the row is not one itself.
        columns: heading -> further cells.
    """

    title: str
    path: str
    chosen_by: str
    function: str = ""
    columns: Mapping[str, Column] = field(default_factory=dict)

    @property
    def module(self) -> ModuleType:
        """The module that owns the dict."""
        return importlib.import_module(self.path.rpartition(".")[0])

    @property
    def rows(self) -> Mapping[str, Any]:
        """The dict."""
        rows: Mapping[str, Any] = getattr(self.module, self.path.rpartition(".")[2])
        return rows

    @cache  # noqa: B019  # one of a few that live as long as the process
    def lines(self) -> dict[str, str]:
        """Return the row's name -> text of the docstring below the dict."""
        body = ast.parse(inspect.getsource(self.module)).body
        for node, following in zip(body, [*body[1:], None], strict=True):
            target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
            if isinstance(target, ast.Name) and target.id == self.path.rpartition(".")[2]:
                is_text = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                text = inspect.cleandoc(str(following.value.value)) if is_text else ""
                lines = re.findall(r"^(\w+): (.+(?:\n    .+)*)", text, re.MULTILINE)
                return {name: " ".join(description.split()) for name, description in lines}
        raise KeyError(self.path)

    def description(self, name: str) -> str:
        """Return what a row is, as Markdown; empty if it has no description."""
        text = self.lines().get(name)
        if text is None:
            row = getattr(self.rows[name], self.function) if self.function else self.rows[name]
            text = (inspect.getdoc(row) or "") if inspect.isroutine(row) else ""
            text = " ".join(re.split(r"\n\n(?:Args|Raises|Returns):", text)[0].split()).removeprefix("Return ")
        return text[:1].upper() + text[1:] if text[1:2].islower() else text  # but iFormer


def _models_of(name: str, row: Any) -> str:
    import timm

    return str(len(timm.list_models(module=name)))


def _imitates(name: str, row: Any) -> str:
    return ", ".join(sorted(row.imitates))


_RANGE: dict[str, Column] = {
    "magnitude": lambda name, row: row.meaning,
    "range": lambda name, row: f"{row.range[0]:g} to {row.range[1]:g}" if row.meaning != "none" else "",
    "imitates": _imitates,
}
_BETTER: dict[str, Column] = {"better": lambda name, row: "higher" if row.higher_is_better else "lower"}

# A page -> its title, tables, and keys that choose among values without a dict of their own.
PAGES: dict[str, tuple[str, tuple[Registry, ...], tuple[str, ...]]] = {
    "models": (
        "Models",
        (
            Registry("comp's networks", "comp.models.coursework.networks.NETWORKS", "model.name"),
            Registry(
                "timm's models by family",
                "comp.models.stems.FAMILIES",
                "model.name",
                columns={
                    "kind": lambda name, row: row.kind,
                    "cifar stem": lambda name, row: "yes" if row.has_cifar_stem else "no",
                    "models": _models_of,
                },
            ),
        ),
        ("model.stem",),
    ),
    "augmentation": (
        "Augmentation",
        (
            Registry(
                "Policies",
                "comp.augment.policies.POLICIES",
                "augment.policy",
                columns={"source": lambda name, row: row.paper, "imitates": _imitates},
            ),
            Registry("Ops", "comp.augment.ops.OPS", "augment.ops", columns=_RANGE),
            Registry("Ops in loader workers", "comp.augment.ops.WORKER_OPS", "augment.ops", columns=_RANGE),
        ),
        ("augment.mixup", "augment.cutmix", "augment.albumentations"),
    ),
    "training": (
        "Training",
        (
            Registry("Optimizers", "comp.training.optimizers.OPTIMIZERS", "optim.name"),
            Registry("Schedules", "comp.training.schedules.SCHEDULES", "optim.schedule"),
            Registry("Losses", "comp.training.losses.LOSSES", "train.loss"),
            Registry("Weight averages", "comp.models.averaging.AVERAGES", "train.average"),
        ),
        ("optim.clip", "train.consistency", "train.class_weights", "data.sampling"),
    ),
    "tasks": (
        "Tasks, metrics, answers",
        (
            Registry("Tasks", "comp.config.tasks.TASKS", "competition.task"),
            Registry("Metrics", "comp.results.metrics.METRICS", "competition.metric", "score", _BETTER),
            Registry("Answers", "comp.submission.answers.ANSWERS", "competition.submission.answer"),
            Registry("Decisions", "comp.results.decisions.KINDS", "predict.decide"),
        ),
        (),
    ),
    "data": (
        "Data",
        (
            Registry("Sources", "comp.data.sources.SOURCES", "data.source"),
            Registry(
                "Corruptions (Hendrycks and Dietterich 2019, arXiv:1903.12261)",
                "comp.data.corruptions.suite.CORRUPTIONS",
                "competition.ood_validation.leave_out",
                "function",
                {"family": lambda name, row: row.family},
            ),
        ),
        ("competition.suite.source",),
    ),
    "prediction": (
        "Prediction and ensembles",
        (
            Registry("Views (TTA)", "comp.inference.views.VIEWS", "predict.views"),
            Registry("Ensemble methods", "comp.ensembles.methods.METHODS", "comp ensemble", "fit"),
            Registry("Classifiers on features", "comp.inference.probe.CLASSIFIERS", "comp probe"),
        ),
        ("predict.adapt", "predict.adapt_per"),
    ),
    "tuning": (
        "Tuning",
        (
            Registry("Samplers", "comp.tuning.samplers.SAMPLERS", "tune.sampler"),
            Registry("Pruners", "comp.tuning.pruners.PRUNERS", "tune.pruner"),
            Registry("Objectives", "comp.tuning.objectives.OBJECTIVES", "tune.metric"),
        ),
        (),
    ),
}
REGISTRIES = tuple(registry for _, registries, _ in PAGES.values() for registry in registries)


@cache
def pages() -> dict[str, str]:
    """Return address -> Markdown of all generated pages."""
    sections = dict.fromkeys(key.path.partition(".")[0] if "." in key.path else "" for key in reference.keys_in())
    return {
        **{f"reference/config/{section or 'other'}.md": _config_page(section) for section in sections},
        "reference/commands.md": _commands_page(),
        python_api.ADDRESS: python_api.page(_escaped),
        **{f"reference/{name}.md": _rows_page(*page) for name, page in PAGES.items()},
    }


def _config_page(section: str) -> str:
    keys = [key for key in reference.keys_in(section) if section or "." not in key.path]
    keys.sort(key=lambda key: key.path.count("."))  # subsections follow the section's own keys
    title = f"`{section}`" if section else "Other keys"
    parts = [f"# {title}", reference.heading(section) if section else _OTHER]
    subsection = section
    for key in keys:
        if (parent := key.path.rpartition(".")[0]) != subsection and parent != section:
            parts.append(f"## `{parent}`\n\n{reference.heading(parent)}")
        subsection = parent
        parts.append(f"### `{key.path}` {{ #{key.path} }}\n\n{_escaped(key.meaning)}\n\n{_facts(key)}")
    return "\n\n".join(parts)


def _facts(key: reference.Key) -> str:
    return f"- Type: {key.type}\n- Default: `{key.default}`\n- Example: `{key.example}`"


def _rows_page(title: str, registries: tuple[Registry, ...], keys: tuple[str, ...]) -> str:
    parts = [f"# {title}"]
    for registry in registries:
        headings = ["name", "what it is", *registry.columns]
        lines = [headings, ["---"] * len(headings)]
        for name, row in registry.rows.items():
            texts = [registry.description(name), *(column(name, row) for column in registry.columns.values())]
            lines.append([f"`{name}`", *map(_escaped, texts)])
        table = "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)
        anchor = registry.path.rpartition(".")[2].lower()
        parts.append(f"## {registry.title} {{ #{anchor} }}\n\nChosen by `{registry.chosen_by}`.\n\n{table}")
    for path in keys:
        (key,) = reference.keys_in(path)
        parts.append(f"## `{path}`\n\n{_escaped(key.meaning)}")
    return "\n\n".join(parts)


def commands(group: Any = None, words: tuple[str, ...] = ("comp",)) -> Iterator[tuple[str, Any]]:
    """Yield every command's words and typer's object for it."""
    import typer.main

    from comp.cli.app import app

    group = group or typer.main.get_command(app)
    for name, command in group.commands.items():
        if not hasattr(command, "commands") or command.invoke_without_command:
            yield " ".join((*words, name)), command
        if hasattr(command, "commands"):
            yield from commands(command, (*words, name))


def _commands_page() -> str:
    parts = ["# Commands", "`comp COMMAND --help` prints the same."]
    for words, command in commands():
        text, _, example = inspect.cleandoc(command.help).partition("Example: ")
        usage = " ".join([words, "[OPTIONS]", *(_metavar(each) for each in command.params if not _is_option(each))])
        rows = "\n".join(
            f"| `{_spelling(parameter).replace('|', '&#124;')}` | {_escaped(_help(parameter)).replace('|', '&#124;')} |"
            for parameter in command.params
            if parameter.name != "help"
        )
        parts.append(
            f"## {words} {{ #{words.replace(' ', '-')} }}\n\n{_escaped(text.strip())}\n\n"
            f"```console\n{usage}\n```\n\nExample: `{' '.join(example.split())}`\n\n"
            f"| argument | meaning |\n|---|---|\n{rows}"
        )
    return "\n\n".join(parts)


def _is_option(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "option")


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _spelling(parameter: Any) -> str:
    if not _is_option(parameter):
        return _metavar(parameter)
    value = "" if parameter.is_flag else f" {_metavar(parameter)}"
    return f"{', '.join(parameter.opts)}{value}"


def _help(parameter: Any) -> str:
    text, default = parameter.help or "", parameter.default
    is_shown = isinstance(default, str | int | float) and not isinstance(default, bool) and default != ""
    return f"{text} Default: `{default}`." if is_shown and "Default:" not in text else text


def _escaped(text: str) -> str:
    """Return text whose signs Markdown does not read, but for its code."""
    return re.sub(r"(`[^`]*`)|([<>*_\[\]])", lambda part: part[1] or f"\\{part[2]}", text)


@cache
def targets() -> dict[str, str]:
    """Return what code font may name -> its address: config keys, commands, dicts, the Python API."""
    keys = {key.path: f"reference/config/{_file_of(key.path)}.md#{key.path}" for key in reference.keys_in()}
    words = {each: f"reference/commands.md#{each.replace(' ', '-')}" for each, _ in commands()}
    dicts = {
        registry.path: f"reference/{name}.md#{registry.path.rpartition('.')[2].lower()}"
        for name, (_, registries, _) in PAGES.items()
        for registry in registries
    }
    names = {path: f"{python_api.ADDRESS}#{path}" for path in python_api.items()}
    return keys | words | dicts | names


def _file_of(path: str) -> str:
    return path.partition(".")[0] if "." in path else "other"


def linked(markdown: str, address: str) -> str:
    """Return a page with links to the config keys, commands and dicts that it names in code font.

    Args:
        markdown: of the page; headings, code blocks and links stay as they are.
        address: of the page in the site.
    """
    lines, in_block = [], False
    for line in markdown.split("\n"):
        in_block ^= line.lstrip().startswith("```")
        is_text = not in_block and not line.startswith(("#", "    ", "- Example:", "Example:"))
        lines.append(re.sub(r"(?<!\[)`([^`]+)`(?!\])", partial(_link, address), line) if is_text else line)
    return "\n".join(lines)


def _link(address: str, code: re.Match[str]) -> str:
    target = targets().get(re.split("[=:]", code[1])[0])
    return f"[{code[0]}]({_relative(target, address)})" if target else code[0]


def _relative(target: str, address: str) -> str:
    return posixpath.relpath(target, posixpath.dirname(address) or ".")


def moved(markdown: str, address: str) -> str:
    """Return a page whose links to files of the repository lead to pages of the site, or are plain text."""
    origins = {site: source for source, site in ELSEWHERE.items()}
    folder = posixpath.dirname(origins.get(address, f"docs/{address}"))

    def change(link: re.Match[str]) -> str:
        text, path, anchor = link.groups()
        if "://" in path:
            return link[0]
        source = posixpath.normpath(posixpath.join(folder, path))
        target = ELSEWHERE.get(source) or (source.removeprefix("docs/") if source.startswith("docs/") else "")
        return f"[{text}]({_relative(target, address)}{anchor or ''})" if target else text

    return re.sub(r"\[([^\]]+)\]\(([^)#\s]+)(#[^)]*)?\)", change, markdown)


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages, and those from elsewhere in the repository."""
    from mkdocs.structure.files import File

    texts = {site: (REPOSITORY / source).read_text(encoding="utf-8") for source, site in ELSEWHERE.items()}
    for address, text in {**pages(), **texts}.items():
        files.append(File.generated(config, address, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **unused: Any) -> str:
    """Set a page's links."""
    address = page.file.src_uri
    is_generated = address.startswith("reference/")
    return linked(markdown if is_generated else moved(markdown, address), address)
