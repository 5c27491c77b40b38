"""`comp data prepare`, `show`, `check`, `errors`, `shift` and `corrupt`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from comp.cli.commands.options import (
    RUNS,
    AllowPlugins,
    AsJson,
    ConfigPath,
    Device,
    Overrides,
    RunsRoot,
    expand_path,
    find_config,
    load_with_plugins,
    open_one_run,
    open_runs,
)
from comp.runtime.errors import plural

if TYPE_CHECKING:
    from comp.workflows.label_errors import LabelReport

_LISTED = 30  # label errors that are printed and pictured unless --top names another number


def prepare(
    config: ConfigPath, overrides: Overrides = None, allow_plugins: AllowPlugins = False, as_json: AsJson = False
) -> None:
    """Find or download a config's data, and verify them.

    Example: comp data prepare configs/cifar100-ood/transfer.yaml
    """
    from comp.cli import console
    from comp.data.dataset import open_dataset

    loaded = load_with_plugins(config, overrides, allow=allow_plugins)
    with console.bars() as progress:
        dataset = open_dataset(loaded, progress)
    console.print_dataset(dataset, as_json)
    if not as_json:
        console.print_next("data", "check", config, *(overrides or []))


def show(
    config: ConfigPath,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the PNGs. Default: runs/data/COMPETITION.", metavar="DIR")
    ] = None,
    augment: Annotated[bool, typer.Option("--augment", help="Also draw the images as training sees them.")] = False,
    allow_plugins: AllowPlugins = False,
    as_json: AsJson = False,
) -> None:
    """Describe a config's data and draw some images.

    Prints counts, sizes, channel statistics and labels.

    Example: comp data show configs/quickstart.yaml augment.policy=randaugment --augment
    """
    from comp.cli import console
    from comp.data import inspection

    loaded = load_with_plugins(config, overrides, allow=allow_plugins)
    with console.bars() as progress:
        dataset = inspection.open_without_suite(loaded, progress)
    described = inspection.describe_dataset(dataset)
    folder = out or Path("runs") / "data" / loaded.competition.name
    paths = inspection.draw_plots(loaded, dataset, folder, augmented=augment)
    if as_json:
        console.print_json({**described, "notes": list(dataset.notes), "pictures": [str(path) for path in paths]})
        return
    console.print_contents(described)
    console.print_notes(dataset)
    console.print_written(*paths)
    console.print_next("data", "check", config, *(overrides or []))


def check(
    config: ConfigPath,
    overrides: Overrides = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Skip files that cannot be read, and count them.")
    ] = False,
    allow_plugins: AllowPlugins = False,
    as_json: AsJson = False,
) -> None:
    """Check your data before training.

    Finds duplicates, leaks, label conflicts and imbalanced classes. Exits with 2
    if scores would mislead.

    Example: comp data check configs/quickstart.yaml
    """
    from dataclasses import asdict

    from comp.cli import console
    from comp.data import inspection, quality

    loaded = load_with_plugins(config, overrides, allow=allow_plugins)
    with console.bars() as progress:
        dataset = inspection.open_without_suite(loaded, progress)
        skip_bad = skip_bad or loaded.data.skip_bad
        findings = quality.find_problems(dataset, loaded, skip_bad=skip_bad, progress=progress)
    if as_json:
        console.print_json([asdict(finding) for finding in findings])
    else:
        console.print_findings(findings)
        console.print_notes(dataset)
    quality.raise_if_misleading(findings, str(config))
    if not as_json:
        console.print_next("cv" if loaded.data.folds else "run", config, *(overrides or []))


def errors(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN... [KEY=VALUE]",
            help="The folds of a cross-validation, its folder or its ensemble; or one run, of which only validation "
            "images are judged. If the data have moved: data.root=DIR.",
        ),
    ],
    top: Annotated[
        int | None,
        typer.Option(min=1, help=f"List only the N likeliest. Default: all in --out, {_LISTED} printed.", metavar="N"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="New fix list for data.fixes, to read and edit.", metavar="CSV", callback=expand_path),
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(
            help="PNG or HTML of the images. Default: beside --out, else in runs/data/COMPETITION.",
            metavar="PATH",
            callback=expand_path,
        ),
    ] = None,
    allow_plugins: AllowPlugins = False,
    as_json: AsJson = False,
) -> None:
    """List likely wrong labels, with pictures.

    By confident learning on validation predictions. Train with data.fixes=CSV to
    drop or relabel these images in training; validation keeps its labels.

    Example: comp data errors runs/quickstart/cv-1234abcd --out fixes.csv
    """
    from comp.cli import console
    from comp.results import files
    from comp.runtime.errors import RunError
    from comp.workflows import label_errors

    if out is not None:
        files.check_writable(out, suffix=".csv")
        if out.exists():
            raise label_errors.existing(out)
    if pictures is not None and pictures.suffix not in (".png", ".html"):
        raise RunError(f"--pictures {pictures}: expected a name that ends in .png or .html")
    overrides = [word for word in words if "=" in word and "/" not in word.partition("=")[0]]
    folders = label_errors.find_runs([Path(word) for word in words if word not in overrides])
    trained = open_runs([*map(str, folders), *overrides], allow_plugins=allow_plugins)
    report = label_errors.find_label_errors(trained, top=top)
    out = out if report.suspects else None
    if out is not None:
        label_errors.write_fixes(report.suspects, out)
    drawn = _draw_errors(report, top or _LISTED, pictures, out)
    if as_json:
        console.print_json({**report.to_json(), "fixes": out and str(out), "pictures": drawn and str(drawn)})
        return
    console.print_label_errors(report, top or _LISTED)
    console.print_written(*filter(None, (drawn, out)))
    if out is not None:
        console.print_text("Look at the pictures and correct the list, then:")
        console.print_next("run", report.trained[0].path / "config.yaml", f"data.fixes={out}")
    elif report.suspects:
        console.print_next("data", "errors", *words, "--out", "fixes.csv")
    else:
        console.print_next("report", report.trained[0].path)


def _draw_errors(report: "LabelReport", count: int, path: Path | None, out: Path | None) -> Path | None:
    """Draw the first suspects and return the file; without images and a named file, only print a note."""
    from comp.cli import console
    from comp.results import files
    from comp.runtime.errors import ConfigError, DataError
    from comp.workflows import label_errors

    if not report.suspects:
        return None
    chosen = path or (out.with_suffix(".png") if out else Path("runs", "data", report.competition, "label-errors.png"))
    files.make_folder(chosen.parent)
    try:
        with console.bars() as progress:
            label_errors.draw(report, report.suspects[:count], chosen, progress)
    except (DataError, ConfigError) as error:  # gone or changed, or of a plug-in without consent
        if path is not None:
            raise
        console.print_note(f"no pictures: {error}")
        return None
    return chosen


def corrupt(
    config: ConfigPath,
    overrides: Overrides = None,
    *,
    split: Annotated[Literal["val", "test"], typer.Option(help="Clean split to corrupt.")],
    out: Annotated[Path, typer.Option(help="New folder, or one to continue.", metavar="DIR")],
    count: Annotated[int, typer.Option(min=0, help="Images per block, a stratified sample; 0: all.")] = 0,
    severities: Annotated[str, typer.Option(help="For example 1-5 or 1,3,5.")] = "1-5",
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Corruptions or families (noise, blur, ...); repeatable.")
    ] = None,
    allow_plugins: AllowPlugins = False,
    as_json: AsJson = False,
) -> None:
    """Write corrupted copies of a split as distortionNN.npy.

    Adds a manifest. Run it again to continue after an interruption.

    Example: comp data corrupt configs/quickstart.yaml --split test --out data/ood --only noise --only fog
    """
    from comp.cli import console
    from comp.data import inspection
    from comp.data.corruptions import export, suite
    from comp.results.blocks import DISTORTIONS

    loaded = load_with_plugins(config, overrides, allow=allow_plugins)
    names = suite.resolve_names(only, "--only") if only else DISTORTIONS
    levels = export.parse_severities(severities)
    with console.bars() as progress:
        dataset = inspection.open_without_suite(loaded, progress)
        paths = export.write_suite(
            export.clean_split(dataset, split),
            out,
            seed=loaded.data.split_seed,
            source={"data": loaded.data.source},
            names=names,
            severities=levels,
            count=count,
            task=dataset.competition.task,
            progress=progress,
        )
    if as_json:
        console.print_json({"folder": str(out), "files": [str(path) for path in paths]})
        return
    severity = plural(len(levels), "severity", "severities")
    console.print_line(f"{plural(len(paths), 'file')} of {severity}, manifest.json and corruptions.png in {out}")
    console.print_next("predict", "RUN", "--suite", out)


def shift(
    source: Annotated[
        Path, typer.Argument(metavar="CONFIG|RUN", help="YAML file, or run folder.", callback=find_config)
    ],
    overrides: Overrides = None,
    *,
    split: Annotated[str, typer.Option(help="suite: what is submitted; test: the clean test; or auto.")] = "auto",
    images: Annotated[int, typer.Option(help="Images to compare, of each side.")] = 2000,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the card, a list and a sheet of images.", callback=expand_path)
    ] = None,
    write: Annotated[
        Path | None, typer.Option("--write", help="New config with the suggestions.", callback=expand_path)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="With --write: replace an existing config.")] = False,
    device: Device = None,
    runs: RunsRoot = RUNS,
    allow_plugins: AllowPlugins = False,
    as_json: AsJson = False,
) -> None:
    """Compare the test with the training images, and suggest what to change.

    Prints how well they can be told apart, what differs, and the corruptions that
    the test's blocks look like. If you name a run, its network compares the test
    with the validation images, which it has not seen.

    Example: comp data shift configs/cifar10/baseline.yaml --out runs/shift --write shifted.yaml
    """
    from comp.cli import console
    from comp.results.files import make_folder
    from comp.workflows import shift as workflow
    from comp.workflows.shift_advice import check_target, write_suggestions

    words = [str(source), *(overrides or [])]
    run = open_one_run(words, allow_plugins=allow_plugins) if source.is_dir() else None
    config = run.config() if run else load_with_plugins(source, overrides, allow=allow_plugins)
    base = source / "config.yaml" if run else source
    if write:
        check_target(config, write, base, force=force)
    if out:
        make_folder(out)
    with console.bars() as progress:
        card = workflow.measure_shift(
            run or config, split=split, images=images, runs_root=runs, device_name=device or "", progress=progress
        )
    if not as_json:
        console.print_shift(card)
    paths = workflow.write_card(card, out) if out else []
    if write and card.suggestions:
        added = overrides or []
        paths.append(write_suggestions(config, card.suggestions, write, base=base, overrides=added, runs=runs))
    elif write:
        console.print_note(f"note: {write} is not written, because nothing is suggested")
    if as_json:
        console.print_json({**card.to_json(), "files": [str(path) for path in paths]})
        return
    console.print_written(*paths)
    if write and card.suggestions:
        console.print_next("run", write)
    elif card.suggestions:
        console.print_next("data", "shift", *words, "--write", "shifted.yaml")
    else:
        console.print_next("report" if run else "run", *words)
