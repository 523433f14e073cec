"""Train a classifier: python sentimentalTrain.py config/sentimental.yaml [key=value …]"""

from smallgpt.cli_sentiment import sentiment_train
from smallgpt.command_line import run_script

if __name__ == "__main__":
    run_script(sentiment_train)
