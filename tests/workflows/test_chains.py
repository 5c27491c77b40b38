"""How many functions of comp a step and a submission go through, counted in a real run."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

import comp
from comp.cli import app
from comp.models.classifier import Classifier
from comp.results import files
from tests.support.configs import QUICK, small_config, write_arrays, write_config

PACKAGE = f"{Path(comp.__file__).parent}/"


def functions_on_stack() -> list[str]:
    """Return comp's functions on the stack, from the outermost to the innermost."""
    names = []
    frame = sys._getframe(1)
    while frame.f_back is not None:
        code = frame.f_code
        if code.co_filename.startswith(PACKAGE):
            names.append(f"{code.co_filename.removeprefix(PACKAGE).removesuffix('.py')}:{code.co_qualname}")
        frame = frame.f_back
    return names[::-1]


@pytest.fixture(scope="module")
def stacks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The stacks of one `comp run`: at its first optimizer step, last suite batch and writing of the CSV."""
    folder = tmp_path_factory.mktemp("chains")
    config = write_config(folder / "small.yaml", small_config(write_arrays(folder / "data")))
    seen: dict[str, list[str]] = {}
    forward, write_together = Classifier.forward, files.write_files_atomically

    def forward_seen(model: Classifier, images: torch.Tensor) -> Any:
        stack = functions_on_stack()
        if "workflows/run:finish" in stack and not any("estimate_accuracy" in name for name in stack):
            seen["forward"] = stack
        return forward(model, images)

    def write_seen(contents: Any, **options: Any) -> None:
        if any(path.suffix == ".csv" for path in contents):
            seen["write"] = functions_on_stack()
        write_together(contents, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(Classifier, "forward", forward_seen)
        patch.setattr(files, "write_files_atomically", write_seen)
        hook = register_optimizer_step_pre_hook(lambda *_: seen.setdefault("step", functions_on_stack()) and None)
        with pytest.raises(SystemExit) as exit_:
            app.main(["run", str(config), *QUICK])
        hook.remove()
    assert exit_.value.code == 0
    return seen


def test_the_first_step_is_at_most_ten_functions_below_the_command_line(stacks: dict[str, list[str]]) -> None:
    assert stacks["step"][0] == "cli/app:main"
    assert len(stacks["step"]) <= 10, stacks["step"]


def test_logits_become_the_bytes_of_the_csv_in_at_most_eight_functions(stacks: dict[str, list[str]]) -> None:
    """Up the stack of the last forward pass to `finish`, and from there down to where the CSV's bytes are written."""
    upward = ["models/classifier:Classifier.forward", *stacks["forward"][::-1]]
    downward = stacks["write"]
    meeting = next(name for name in upward if name in downward)
    chain = [*upward[: upward.index(meeting) + 1], *downward[downward.index(meeting) + 1 :]]
    assert meeting == "workflows/run:finish"
    assert len(chain) <= 8, chain
