"""The built-in small talk, and whether replies to it fit."""
