"""`python -m hostsim` is `hostsim`."""

from hostsim.cli import main

if __name__ == "__main__":
    main()
