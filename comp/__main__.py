"""`python -m comp`: the command line, also started by torchrun."""

from comp.cli.app import main

if __name__ == "__main__":
    main()
