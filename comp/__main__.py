"""`comp` and `python -m comp` start here, also processes of torchrun: little is imported before Ctrl-C is quiet."""

import signal
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line; until it catches signals itself, Ctrl-C ends the process without a word."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else a shell's `&` or nohup ignores it
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from comp.cli import app

    app.main()


if __name__ == "__main__":
    main()
