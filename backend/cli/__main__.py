"""`python -m backend.cli` is `suanpan`."""

from backend.cli.root import main

if __name__ == "__main__":
    main()
