"""Train a GPT on dialogues: python train.py config/train90M.yaml [key=value …]"""

from smallgpt.cli.arguments import run_script
from smallgpt.cli.main import train

if __name__ == "__main__":
    run_script(train)
