"""The process that uploads segments; it and the other processes of W&B's here are the only importers of wandb.

python -m comp.tracking.uploader SEGMENT...
"""

import sys
import urllib.error
import urllib.request

import wandb
from wandb.cli.cli import cli

_ANSWER_SECONDS = 5.0
UNREACHABLE = 3  # exit code


def main(segments: list[str]) -> None:
    """Upload segments; those of one run one after the other, as they were begun."""
    address = wandb.setup().settings.base_url
    if not _answers(address):
        print(f"{address} does not answer", file=sys.stderr)
        sys.exit(UNREACHABLE)
    cli.main(["sync", *segments])


def _answers(address: str) -> bool:
    """Tell whether a server says anything at all: W&B's own client would wait for minutes."""
    try:
        with urllib.request.urlopen(address, timeout=_ANSWER_SECONDS):
            return True
    except urllib.error.HTTPError:
        return True  # it speaks
    except OSError:
        return False


if __name__ == "__main__":
    main(sys.argv[1:])
