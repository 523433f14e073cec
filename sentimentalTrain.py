"""Train a classifier: python sentimentalTrain.py config/sentimental.yaml [key=value …]"""

from smallgpt.cli.arguments import run_script
from smallgpt.cli.sentiment import sentiment_train

if __name__ == "__main__":
    run_script(sentiment_train)
