"""Run checks on the pretend device; see the package."""

import json
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path

import torch

from tests.support import pretend_device
from tests.support.on_device import Check, Outcome


def main(device_name: str, path: str, *names: str) -> None:
    """Run the checks with these names, or below them, on a device, and write their outcomes."""
    device = pretend_device.start(device_name)
    torch.set_num_threads(1)
    from tests.support.on_device import augmentation, faults, parts, steps, trainings

    checks: dict[str, Check] = {}
    for module in (augmentation, faults, parts, steps, trainings):
        checks |= module.checks()
    below = tuple(f"{check}/" for check in names)
    chosen = {check: run for check, run in checks.items() if check in names or check.startswith(below)}
    assert chosen, f"no check is named {names}"
    outcomes = {}
    for check, run in chosen.items():
        began = time.process_time()
        outcome = _outcome(run, device)
        outcomes[check] = asdict(outcome)
        seconds = time.process_time() - began
        print(f"{check}, {seconds:.1f} s of CPU: {outcome.error.partition(chr(10))[0] or 'passed'}", flush=True)
    Path(path).write_text(json.dumps(outcomes))


def _outcome(check: Check, device: torch.device) -> Outcome:
    try:
        return Outcome(values=check(device) or {})
    except Exception as error:
        ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "/comp/" in frame.filename]
        lines = traceback.format_list(ours[-3:] + traceback.extract_tb(error.__traceback__)[-3:])
        return Outcome(error="".join([f"{type(error).__name__}: {error}\n", *lines])[:3000])


if __name__ == "__main__":
    main(*sys.argv[1:])
