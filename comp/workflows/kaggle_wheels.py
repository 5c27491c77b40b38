"""The wheels of a package: comp's own, and what it needs to predict that the image of a notebook lacks. Torch-free.

An image is what Kaggle runs notebooks in. `pip list --format=freeze` in a notebook lists its packages. What the image
has in a version that suits comp is not packed; torch never is, as it takes gigabytes.
"""

import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from comp.config import shipped
from comp.results import files
from comp.runtime.errors import UserError
from comp.submission import kaggle_failures

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
_ASSUMED = ("torch", "torchvision", "numpy", "pandas", "scipy", "scikit-learn", "matplotlib", "pyyaml", "pillow")
_NEVER_PACKED = ("torch", "torchvision")
# comp imports them late, for tuning, tracking, augmentation, plots and its command line; a notebook only predicts.
_UNUSED = ("optuna", "cmaes", "wandb", "albumentations", "matplotlib", "typer", "rich")
_PYTHON_LINE = re.compile(r"^#\s*python\s*=*\s*(\d+\.\d+)", re.IGNORECASE | re.MULTILINE)
_LINUX = {"os_name": "posix", "sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"}
_GLIBC = range(17, 36)  # 2.17 to 2.35, that of Ubuntu 22.04; pip takes the names of platforms, not their order
_PLATFORMS = ("manylinux2014_x86_64", *(f"manylinux_2_{minor}_x86_64" for minor in _GLIBC))
_PACKED = (".py", ".typed", ".yaml")  # files of comp's wheel
_WHEEL = "Wheel-Version: 1.0\nGenerator: comp\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_LAST_LINES = 3  # of pip's errors


class Image(NamedTuple):
    """What a notebook runs in: its Python, the version of each package (empty: unknown), and what is assumed of it."""

    python: str
    packages: Mapping[str, str]
    note: str = ""


def read_image(path: Path | None) -> Image:
    """Return the image that a list of packages describes; without one, the assumed image.

    Args:
        path: lines `name==version` of `pip list --format=freeze` or `pip freeze`, and `# python 3.11`; without that
            line the image has this process's Python.

    Raises:
        UserError: the file cannot be read, or a line names no package.
    """
    if path is None:
        packages = dict.fromkeys(closure(_ASSUMED, HERE), "")
        note = f"assumed: the image has Python {HERE}, {', '.join(_ASSUMED)} and what those need, as new as needed"
        return Image(HERE, packages, f"{note}; its own list says more: --image-packages FILE")
    text = files.read_bytes(path, "list of packages", UserError).decode("utf-8", "replace")
    match, packages = _PYTHON_LINE.search(text), {}
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.startswith(("#", "-")):  # `-e` and the like name no version
            try:
                requirement = Requirement(line)
            except InvalidRequirement:
                where = f"{path}: line {number}: expected name==version, as `pip list --format=freeze` prints it"
                raise UserError(f"{where}, found {line[:80]!r}") from None
            versions = [
                spec.version for spec in requirement.specifier if spec.operator == "==" and "*" not in str(spec)
            ]
            packages[canonicalize_name(requirement.name)] = versions[0] if versions else ""
    if missing := [name for name in _NEVER_PACKED if name not in packages]:
        raise UserError(f"{path}: lists no {' and no '.join(missing)}; expected the packages of an image with torch")
    if match:
        needed = str(metadata.metadata("comp")["Requires-Python"] or "")
        if match[1] not in SpecifierSet(needed):
            raise UserError(f"{path}: the image has Python {match[1]}, and comp needs {needed}; choose a newer image")
        return Image(match[1], packages)
    return Image(HERE, packages, f"assumed: the image has Python {HERE}; add a line `# python 3.x` to {path}")


def missing_packages(image: Image) -> dict[str, str]:
    """Return what comp needs to predict beyond an image: name -> the version installed here, empty if it is not.

    Raises:
        UserError: the image's torch or torchvision is too old.
    """

    def is_there(requirement: Requirement) -> bool:
        name = canonicalize_name(requirement.name)
        version = image.packages.get(name)
        if version is None or (version and not requirement.specifier.contains(version, prereleases=True)):
            if name in _NEVER_PACKED:
                raise UserError(
                    f"the image has {name} {version or 'not at all'}, and comp needs {requirement}; it is too large to "
                    "be packed: choose a newer image in the notebook's settings, and list its packages"
                )
            return name in _UNUSED
        return True

    return closure(metadata.requires("comp") or (), image.python, is_there)


def closure(
    requirements: Iterable[str], python: str, leave_out: Callable[[Requirement], bool] = lambda _: False
) -> dict[str, str]:
    """Return all packages that requirements need on Linux, by what is installed here: name -> version or empty."""
    environment = {"python_version": python, "python_full_version": f"{python}.0", "extra": "", **_LINUX}
    packages: dict[str, str] = {}
    waiting = list(requirements)
    while waiting:
        requirement = Requirement(waiting.pop(0))
        name = canonicalize_name(requirement.name)
        unasked = requirement.marker is not None and not requirement.marker.evaluate(environment)
        if unasked or name in packages or leave_out(requirement):
            continue
        try:
            packages[name] = metadata.version(name)
            waiting += metadata.requires(name) or ()
        except metadata.PackageNotFoundError:
            packages[name] = ""
    return packages


def download(packages: Mapping[str, str], python: str, folder: Path) -> None:
    """Download wheels for the image's Python on Linux with pip, from where its configuration says; else UserError."""
    if not packages:
        return
    words = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    words += ["--python-version", python, "--implementation", "cp"]
    words += [word for platform in _PLATFORMS for word in ("--platform", platform)]
    words += [f"{name}=={version}" if version else name for name, version in packages.items()]
    done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = kaggle_failures.last_lines(done.stderr or done.stdout, _LAST_LINES)
        raise UserError(f"pip download failed, so no wheels are packed: {' '.join(lines.splitlines())}")


def write_own_wheel(folder: Path) -> Path:
    """Write comp's wheel, of the files that run here, from a checkout or an installation; return its path."""
    distribution, package = metadata.distribution("comp"), Path(__file__).parents[1]
    info, path = f"comp-{distribution.version}.dist-info", folder / f"comp-{distribution.version}-py3-none-any.whl"
    described = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO")  # the second: of a checkout
    texts = {"METADATA": described or "", "WHEEL": _WHEEL}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for root, name in ((package, "comp"), (shipped.folder(), "comp_configs")):
            for file in sorted(file for file in root.rglob("*") if file.suffix in _PACKED):
                archive.write(file, f"{name}/{file.relative_to(root).as_posix()}")
        for name, text in texts.items():
            archive.writestr(f"{info}/{name}", text)
        archive.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in (*archive.namelist(), f"{info}/RECORD")))
    return path
