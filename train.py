"""Train a GPT on dialogues: python train.py config/train90M.yaml [key=value ...]"""

import sys

if sys.version_info < (3, 8):  # noqa: UP036  (too old for the check in smallgpt/cli)
    sys.stderr.write("error: Small GPT needs Python 3.11 or newer: type for example python3.12\n")
    sys.exit(2)

from smallgpt.cli.arguments import run_script
from smallgpt.cli.main import train

if __name__ == "__main__":
    run_script(train)
