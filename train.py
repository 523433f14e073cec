"""Train a GPT on dialogues: python train.py config/train90M.yaml [key=value …]"""

from smallgpt.cli import run_script, train

if __name__ == "__main__":
    run_script(train)
