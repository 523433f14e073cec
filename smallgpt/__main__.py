"""`python -m smallgpt …` is the `smallgpt` command without installing the package."""

from smallgpt.cli.main import main

if __name__ == "__main__":
    main()
