"""Chat with a trained model: python chat.py config/chat90M.yaml [key=value …]"""

from smallgpt.cli import chat
from smallgpt.command_line import run_script

if __name__ == "__main__":
    run_script(chat)
