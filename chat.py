"""Chat with a trained model: python chat.py config/chat90M.yaml [key=value …]"""

from smallgpt.cli.arguments import run_script
from smallgpt.cli.main import chat

if __name__ == "__main__":
    run_script(chat)
