"""Exports of chat apps -> messages -> dialogues in which one speaker gives the replies."""
