"""`python -m cli` is `attune`."""

from cli.main import main

if __name__ == "__main__":
    main()
