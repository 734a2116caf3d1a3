"""`python -m procguard`: the operator's command line, the same as the installed `procguard`."""

from procguard.cli.app import main

if __name__ == "__main__":
    main()
