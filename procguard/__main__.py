"""`python -m procguard`: the operator's commands, the same as `procguard` once installed."""

from procguard.cli.app import main

if __name__ == "__main__":
    main()
