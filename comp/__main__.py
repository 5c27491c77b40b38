"""`python -m comp`: the command line, also the way in for torchrun."""

from comp.cli.app import main

if __name__ == "__main__":
    main()
