"""Train a GPT on dialogues: python train.py config/train90M.yaml [key=value …]"""

from smallgpt.cli import train
from smallgpt.command_line import run_script

if __name__ == "__main__":
    run_script(train)
